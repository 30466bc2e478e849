"""Embed documents, let the model think about a question, and see what it thought.

python examples/quickstart.py
"""

from searchr3_embed import ReasoningEmbedder

DOCUMENTS = [
    "Antibiotics kill bacteria; they do nothing against the viruses that cause colds and influenza.",
    "A vaccine trains the immune system with a harmless part of a germ, so that it is ready for the real one.",
    "Compound interest is interest on interest: the balance grows faster every year.",
    "Hold the bread knife at a shallow angle and let the teeth do the work.",
    "Moss grows where it is damp and shady, on any side of a tree.",
]
QUESTIONS = ["does penicillin help against a cold?", "how do savings grow over time?"]


def main() -> None:
    embedder = ReasoningEmbedder("searchr3")  # packaged weights: no download
    documents = embedder.encode_document(DOCUMENTS)
    for trace in embedder.reason(QUESTIONS):
        scores = documents @ trace.embedding  # all have length 1, so this is the cosine
        print(f"{trace.text}\n  thought: {trace.reasoning or '(nothing)'}")
        for number in scores.argsort()[::-1][:2]:
            print(f"  {scores[number]:.3f}  {DOCUMENTS[number]}")


if __name__ == "__main__":
    main()
