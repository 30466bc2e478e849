"""Token ids in, reasoning ids and hidden states out, in one pass: the loop that writes, the batch, the memory of it.

Outside, ``decode`` and ``forward`` are imported. Nothing in here knows text, files or the embedder.
"""
