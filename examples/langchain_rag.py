"""Answer questions about Python's modules with LangChain: retrieve, put what was found into a prompt, ask a model.

python examples/langchain_rag.py "how do i roll a die?"

A stand-in answers from the first passage; put your own chat model in its place.
"""

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_searchr3 import SearchR3Embeddings

from searchr3_embed.search.python_docs import read_stdlib

MODULES = ("random.", "shutil.", "textwrap.", "statistics.")
QUESTIONS = ["how do i pick a random element of a list?", "the middle value of some numbers", "delete a whole folder"]
PROMPT = ChatPromptTemplate.from_template("Answer from these passages only.\n\n{passages}\n\nQuestion: {question}")


def chat_model(prompt) -> str:
    passage = prompt.to_string().split("\n\n")[1]
    return " ".join(passage.split())[:100]


def main() -> None:
    passages = [p for p in read_stdlib() if p.id.startswith(MODULES)]
    store = InMemoryVectorStore.from_texts([p.content for p in passages], SearchR3Embeddings())
    retriever = store.as_retriever(search_kwargs={"k": 3})
    chain = (
        {
            "passages": retriever | (lambda hits: "\n\n".join(hit.page_content for hit in hits)),
            "question": RunnablePassthrough(),
        }
        | PROMPT
        | RunnableLambda(chat_model)
        | StrOutputParser()
    )
    print(f"{len(passages)} passages")
    questions = sys.argv[1:] or QUESTIONS
    for question, answer in zip(questions, chain.batch(questions), strict=True):
        print(f"{question}\n  {answer}")


if __name__ == "__main__":
    main()
