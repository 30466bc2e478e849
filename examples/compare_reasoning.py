"""Plot how close a question comes to documents with and without reasoning.

python examples/compare_reasoning.py "why do leaves change colour?" --output reasoning.png
"""

import argparse

from matplotlib.figure import Figure

from searchr3_embed import ReasoningEmbedder

DOCUMENTS = {
    "chlorophyll": "In autumn chlorophyll breaks down and the yellow and red pigments of the leaf show.",
    "sky": "Air scatters short wavelengths most, which is why the sky looks blue.",
    "rust": "Iron rusts when it meets water and oxygen.",
    "tea": "Black tea is made of leaves that were allowed to oxidise before drying.",
    "paint": "Exterior paint loses its colour in sunlight after some years.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", nargs="?", default="why do leaves change colour?")
    parser.add_argument("--output", default="reasoning.png", help="the plot (default: %(default)s)")
    arguments = parser.parse_args()

    embedder = ReasoningEmbedder("searchr3")
    documents = embedder.encode_document(list(DOCUMENTS.values()))
    trace = embedder.reason(arguments.question)
    thoughtful = documents @ trace.embedding
    direct = documents @ embedder.encode_query(arguments.question, reason=False)

    print(f"{arguments.question}\n  thought: {trace.reasoning or '(nothing)'}")
    for name, with_reasoning, without in zip(DOCUMENTS, thoughtful, direct, strict=True):
        print(f"  {name:12} {without:+.3f} direct  {with_reasoning:+.3f} reasoning")

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(DOCUMENTS))
    axes.barh([place + 0.2 for place in places], direct, 0.4, label="direct")
    axes.barh([place - 0.2 for place in places], thoughtful, 0.4, label="reasoning")
    axes.set_yticks(places, DOCUMENTS)
    axes.invert_yaxis()
    axes.set_xlabel("cosine to the question")
    axes.set_title(f"{arguments.question}\nthought: {trace.reasoning}", fontsize=9)
    axes.legend(frameon=False)
    figure.savefig(arguments.output, dpi=150)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
