"""Keep documents in a Chroma database on disk, close it, open it again, and search.

python examples/chroma_persistent.py --folder notes.chroma
"""

import argparse

import chromadb

from searchr3_embed import ReasoningEmbedder

DOCUMENTS = {
    "rye": "Rye sourdough: feed the starter the evening before, knead little, bake hot with steam.",
    "bike": "The rear brake of the bicycle squeaks when it is wet; clean the rim and turn the pads in.",
    "tomatoes": "Tomatoes went out on the 14th of May, after the last frost; the balcony ones bear first.",
    "router": "The router loses its connection every night; a restart of the modem helps.",
    "passport": "The passport runs out in March; the office wants a photo and six weeks of time.",
}
QUESTIONS = ["why is the internet down?", "what papers do i need for travelling?", "when is it warm enough to plant?"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="notes.chroma", help="the database (default: %(default)s)")
    folder = parser.parse_args().folder
    embedder = ReasoningEmbedder("searchr3")

    # Chroma gets finished vectors, so it needs no embedding function of its own.
    client = chromadb.PersistentClient(folder)
    notes = client.get_or_create_collection(
        "notes", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
    )
    notes.upsert(
        ids=list(DOCUMENTS),
        documents=list(DOCUMENTS.values()),
        embeddings=embedder.encode_document(list(DOCUMENTS.values())),
    )
    client.close()

    notes = chromadb.PersistentClient(folder).get_collection("notes", embedding_function=None)
    print(f"{notes.count()} notes in {folder}")
    hits = notes.query(query_embeddings=embedder.encode_query(QUESTIONS), n_results=1)
    for question, [name], [distance], [text] in zip(
        QUESTIONS, hits["ids"], hits["distances"], hits["documents"], strict=True
    ):
        print(f"{question}\n  {1 - distance:.3f}  {name}: {text}")


if __name__ == "__main__":
    main()
