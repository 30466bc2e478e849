"""A folder, a file or Python's own documentation into passages, passages into vectors, and a question into hits.

``passages`` reads and ``splitting`` cuts, ``python_docs`` is a source of its own, ``vector_cache`` keeps vectors and
``index`` puts all together. An embedder is given to this folder: it never loads one, and it knows nothing of how one
works. The commands import from here.
"""
