"""What makes the engine fast on a CPU: a forward pass for BERT, matrix products by oneDNN, and OpenMP's threads.

Outside the engine, the kinds import ``kernels.fastest_products``, the async queue and the server
``threads.release_helpers``. It knows tensors, modules and processors; it never knows rows of a batch, or what is
computed for whom.
"""
