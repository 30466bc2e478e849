"""Search by words and by meaning: BM25 gets the words that the model wrote, and both rankings are merged.

python examples/hybrid_search.py "how do i read a csv file?"
"""

import sys

import bm25s

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.search.python_docs import read_stdlib

MODULES = ("csv.", "random.", "shutil.", "textwrap.")
QUESTIONS = ["how do i copy a file?", "pick a random element from a list", "wrap a long line of text"]
# Reciprocal rank fusion: a passage gets 1 / (60 + rank) from each ranking. 60 is the usual constant.
CONSTANT = 60


def ranks(scores) -> list[int]:
    """Position of each passage, 0 for the best."""
    positions = [0] * len(scores)
    for position, row in enumerate((-scores).argsort(kind="stable")):
        positions[row] = position
    return positions


def main() -> None:
    questions = sys.argv[1:] or QUESTIONS
    embedder = ReasoningEmbedder("searchr3")
    passages = [passage for passage in read_stdlib() if passage.id.startswith(MODULES)]
    texts = [passage.content for passage in passages]
    vectors = embedder.encode_document(texts)
    words = bm25s.BM25()
    words.index(bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False), show_progress=False)
    known = set(words.vocab_dict)

    print(f"{len(passages)} entries of {len(MODULES)} modules")
    for trace in embedder.reason(questions):
        # The question and what was written about it: two chances to name what the passage says.
        asked = f"{trace.text} {trace.reasoning}"
        [tokens] = bm25s.tokenize([asked], stopwords="en", return_ids=False, show_progress=False)
        by_words = ranks(words.get_scores([token for token in tokens if token in known] or [""]))
        by_meaning = ranks(vectors @ trace.embedding)
        merged = [
            1 / (CONSTANT + 1 + one) + 1 / (CONSTANT + 1 + other)
            for one, other in zip(by_words, by_meaning, strict=True)
        ]
        print(f"{trace.text}\n  words: {' '.join(tokens)}")
        for row in sorted(range(len(merged)), key=lambda row: -merged[row])[:3]:
            places = f"words {by_words[row] + 1:>3}, meaning {by_meaning[row] + 1:>3}"
            print(f"  {merged[row]:.4f}  ({places})  {passages[row].id}")


if __name__ == "__main__":
    main()
