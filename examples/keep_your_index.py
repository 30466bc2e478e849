"""Keep the index that plain sentence-transformers code made, and let its questions think.

python examples/keep_your_index.py "how do i read a csv file?"
python examples/keep_your_index.py --model FOLDER    # an encoder of yours, joined to a thinker: searchr3 join
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.checkpoint import locate
from searchr3_embed.search.python_docs import read_stdlib

MODULES = ("csv.", "random.", "shutil.", "textwrap.")
QUESTIONS = [
    "copy everything below a folder",
    "shuffle the cards of a deck",
    "wrap a long line of text",
]


def make_index(encoder: str, folder: Path) -> None:
    """What you have: texts and their vectors. Nothing of searchr3-embed embeds here."""
    texts = [f"{passage.title}\n{passage.text}" for passage in read_stdlib() if passage.id.startswith(MODULES)]
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    np.save(folder / "vectors.npy", SentenceTransformer(encoder).encode(texts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", default=QUESTIONS)
    parser.add_argument("--model", default="searchr3", help="an encoder with a thinker (default: the packaged one)")
    args = parser.parse_args()
    embedder = ReasoningEmbedder(args.model)

    with tempfile.TemporaryDirectory() as folder:
        # For sentence-transformers the model's folder is a plain encoder: all-MiniLM-L6-v2 in the packaged one.
        make_index(str(locate.find(args.model)), Path(folder))
        texts = json.loads(Path(folder, "texts.json").read_text(encoding="utf-8"))
        vectors = np.load(Path(folder, "vectors.npy"))

    check = embedder.check_index(texts, vectors)
    print(check.message)
    if not check:
        raise SystemExit("These vectors are another encoder's: questions of this one would find nothing in them.")

    for trace in embedder.reason(args.questions):
        before = vectors @ embedder.encode_query(trace.text, reason=False)
        after = vectors @ trace.embedding
        thought = "nothing to add" if trace.finish_reason == "nothing_to_add" else trace.reasoning
        print(f"\n{trace.text}\n  thought: {thought}")
        for one, other in zip(before.argsort()[:-4:-1], after.argsort()[:-4:-1], strict=True):
            left, right = (texts[row].partition("\n")[0] for row in (one, other))
            print(f"  before {before[one]:.3f}  {left:<28}  after {after[other]:.3f}  {right}")


if __name__ == "__main__":
    main()
