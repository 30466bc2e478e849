"""The card of a checkpoint that has none of its own: the README.md that is saved and pushed to the hub."""

from __future__ import annotations

_TAGS = "[sentence-transformers, feature-extraction, sentence-similarity, search-r3, reasoning]"


def render(name: str | None, encoder: str | None, dimension: int) -> str:
    """The card as Markdown.

    Args:
        name: The repository on the hub; None for a folder.
        encoder: The encoder's name, for a checkpoint with a thinker beside it; None for a single model.
        dimension: Of the vectors.
    """
    shown = name or "path/to/this/folder"
    front = ["library_name: sentence-transformers", "pipeline_tag: sentence-similarity", f"tags: {_TAGS}"]
    # Only a name that may be one on the hub: it refuses cards with others.
    if encoder is not None and encoder.count("/") == 1:
        front.append(f"base_model: {encoder}")
    if encoder is None:
        what = (
            "A language model that thinks before it embeds, as in the Search-R3 paper: one model embeds documents in "
            "one pass, and questions after a short reasoning. Documents must be embedded again after further training."
        )
    else:
        what = (
            f"Documents are embedded by {encoder}, which nobody has changed; a thinker beside it writes a few words "
            "about a question and moves the question's vector by where they led. An index of the encoder's vectors "
            "stays valid."
        )
    return f"""---
{chr(10).join(front)}
---

# {shown.rpartition("/")[2]}

{what} Vectors have {dimension} dimensions.

```python
from searchr3_embed import ReasoningEmbedder

embedder = ReasoningEmbedder("{shown}")
documents = embedder.encode_document(["The csv module reads rows of comma-separated text."])
queries = embedder.encode_query(["load a spreadsheet export"])  # thinks, then embeds
print(embedder.similarity(queries, documents))
```

The stock class loads the same folder without thinking: `SentenceTransformer("{shown}")`.

## Training data and licence

Say here what it was trained on and under which licence that is: share-alike texts ask for attribution. The list for
the packaged model is `training/DATA.md` in the repository of searchr3-embed.
"""
