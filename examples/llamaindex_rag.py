"""Split the licence of this project, index it with LlamaIndex, keep the index on disk, and ask it questions.

python examples/llamaindex_rag.py "may i sell it?"
"""

import sys
import tempfile
from pathlib import Path

from llama_index.core import Document, Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.searchr3 import SearchR3Embedding

LICENSE = Path(__file__).parent.parent / "LICENSE"
QUESTIONS = [
    "what happens if i sue somebody over patents?",
    "may i use the project's name in my advertising?",
    "who pays when the software breaks something?",
]


def main() -> None:
    Settings.embed_model = SearchR3Embedding()
    document = Document(text=LICENSE.read_text(encoding="utf-8"), metadata={"file": LICENSE.name})
    # The model reads 256 tokens; longer passages would be cut.
    nodes = SentenceSplitter(chunk_size=150, chunk_overlap=20).get_nodes_from_documents([document])
    with tempfile.TemporaryDirectory() as folder:
        VectorStoreIndex(nodes).storage_context.persist(folder)
        index = load_index_from_storage(StorageContext.from_defaults(persist_dir=folder))

    print(f"{len(nodes)} passages of {LICENSE.name}")
    retriever = index.as_retriever(
        similarity_top_k=1
    )  # index.as_query_engine() adds the language model in Settings.llm
    for question in sys.argv[1:] or QUESTIONS:
        hit = retriever.retrieve(question)[0]
        print(f"{question}\n  {hit.score:.3f}  {' '.join(hit.text.split())[:110]}")


if __name__ == "__main__":
    main()
