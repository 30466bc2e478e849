"""A folder or a library into passages, passages into vectors, and a question into hits.

The commands import from here. It uses an embedder that it is given and never loads one.
"""
