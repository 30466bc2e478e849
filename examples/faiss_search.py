"""Build a FAISS index over Python's own documentation, keep it on disk, and ask it questions.

python examples/faiss_search.py "how do i read a csv file?"
"""

import sys
import tempfile
from pathlib import Path

import faiss

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.search.python_docs import read_stdlib

MODULES = ("csv.", "json.", "pathlib.Path.", "shutil.", "random.", "textwrap.", "zipfile.ZipFile.")
QUESTIONS = ["how do i copy a file?", "pick a random element from a list", "wrap a long line of text"]


def main() -> None:
    questions = sys.argv[1:] or QUESTIONS
    embedder = ReasoningEmbedder("searchr3")
    passages = [passage for passage in read_stdlib() if passage.id.startswith(MODULES)]

    index = faiss.IndexFlatIP(embedder.get_embedding_dimension())  # inner product of unit vectors: the cosine
    index.add(embedder.encode_document([passage.content for passage in passages]))
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "python.faiss"))
        faiss.write_index(index, file)
        index = faiss.read_index(file)

    print(f"{index.ntotal} entries of {len(MODULES)} modules")
    scores, rows = index.search(embedder.encode_query(questions), 3)
    for question, its_scores, its_rows in zip(questions, scores, rows, strict=True):
        print(question)
        for score, row in zip(its_scores, its_rows, strict=True):
            print(f"  {score:.3f}  {passages[row].id}")


if __name__ == "__main__":
    main()
