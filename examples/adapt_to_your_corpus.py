"""Adapt the question side to a corpus: signatures of Python's own documentation, asked by what they do.

python examples/adapt_to_your_corpus.py
python examples/adapt_to_your_corpus.py --train question-encoder --minutes 10
"""

import argparse

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.adapt import AdaptSettings, adapt
from searchr3_embed.search.python_docs import read_stdlib

MODULES = ("csv.", "random.", "shutil.", "textwrap.", "statistics.", "tempfile.", "glob.", "heapq.", "bisect.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", default="projection", choices=["projection", "question-encoder", "thinker"])
    parser.add_argument("--minutes", type=float, default=0.05)
    args = parser.parse_args()

    # Documents are the signatures; what somebody would ask is what their first sentence says they do.
    documents, pairs = {}, []
    for entry in read_stdlib():
        signature, _, rest = entry.text.partition("\n")
        asked = rest.strip().split(".")[0]
        if entry.id.startswith(MODULES) and 4 <= len(asked.split()) <= 25:
            documents[entry.id] = signature
            pairs.append((" ".join(asked.split()), entry.id))

    embedder = ReasoningEmbedder("searchr3")
    before = embedder.encode_document(list(documents.values()))
    settings = AdaptSettings(train=args.train, minutes=args.minutes, keep_anyway=True)
    adapted, report = adapt(embedder, documents, pairs, settings)
    print("\n".join(report.lines()))

    after = adapted.encode_document(list(documents.values()))
    print(f"documents: {len(documents)} vectors, {int((before != after).any(axis=1).sum())} of them changed")
    question = "pick one thing out of a list by chance"
    for name, model in (("before", embedder), ("after", adapted)):
        scores = after @ model.encode_query(question)
        best = [list(documents)[row] for row in scores.argsort()[:-4:-1]]
        print(f"{name:6}  {question}: {', '.join(best)}")


if __name__ == "__main__":
    main()
