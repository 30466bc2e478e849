"""Networks: the module that sentence-transformers holds for a causal language model.

The embedder imports from here. It knows tensors and modules; it never knows texts, prompts, or which files a
checkpoint consists of.
"""
