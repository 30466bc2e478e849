"""What makes the engine fast on a CPU: a forward pass for BERT, matrix products by oneDNN, and OpenMP's threads.

Only the engine and the module that loads models import from here. It knows tensors and modules, nothing else.
"""
