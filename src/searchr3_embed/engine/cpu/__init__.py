"""What makes the engine fast on a CPU: a forward pass for BERT, matrix products by oneDNN, and OpenMP's threads.

Outside the engine, the embedder imports ``kernels.speed_up`` and the async queue ``threads.release_helpers``. It knows
tensors, modules and processors; it never knows rows of a batch, or what is computed for whom.
"""
