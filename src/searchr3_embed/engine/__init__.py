"""Token ids in; written token ids and hidden states out, in one pass.

Outside, import ``decode.think`` (writes, then embeds) and ``forward.embed`` (embeds without writing); training, which
must compute the same, also takes ``head``, ``batching`` and ``decode.stop_token_ids``. It knows tensors, caches and
transformers' models; it never knows text, files or the embedder.
"""
