"""An agent writes why it searches, calls a search tool, and its words are embedded together with the query.

python examples/agent_search.py "how do i pick a random element of a list?"

A scripted model stands in for yours: put a chat model with `bind_tools([search])` in its place. The loop is the usual
one: the tool gets the thought as an argument, so nothing has to be dug out of the conversation.
"""

import sys

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_searchr3 import SearchR3Embeddings

from searchr3_embed.search.python_docs import read_stdlib

MODULES = ("random.", "shutil.", "textwrap.", "statistics.")
QUESTION = "how do i pick a random element of a list?"
THOUGHT = "The random module chooses from a sequence; choice returns one element."

embeddings = SearchR3Embeddings()
passages = [p for p in read_stdlib() if p.id.startswith(MODULES)]
store = InMemoryVectorStore.from_texts([f"{p.title}: {p.text}" for p in passages], embeddings)


@tool
def search(query: str, thought: str) -> str:
    """Searches the documentation of Python. `thought`: what you expect to find and why, in one sentence."""
    vector = embeddings.embed_query(query, reasoning=thought)
    return "\n".join(hit.page_content for hit in store.similarity_search_by_vector(vector, k=3))


def scripted_model(question: str) -> GenericFakeChatModel:
    """Calls the tool once, then answers; a real model decides this by itself."""
    call = {"name": "search", "args": {"query": question, "thought": THOUGHT}, "id": "1", "type": "tool_call"}
    turns = [AIMessage(content="I look it up.", tool_calls=[call]), AIMessage(content="See the first passage.")]
    return GenericFakeChatModel(messages=iter(turns))


def main() -> None:
    question = " ".join(sys.argv[1:]) or QUESTION
    model = scripted_model(question)
    messages = [HumanMessage(question)]
    while True:
        answer = model.invoke(messages)
        messages.append(answer)
        if not answer.tool_calls:
            break
        for call in answer.tool_calls:
            print(f"{call['name']}({call['args']['query']!r})\n  thought: {call['args']['thought']}")
            found = search.invoke(call["args"])
            messages.append(ToolMessage(found, tool_call_id=call["id"]))
            print("\n".join(f"  found: {' '.join(line.split())[:90]}" for line in found.splitlines()[:3]))
    print(f"answer: {answer.content}")


if __name__ == "__main__":
    main()
