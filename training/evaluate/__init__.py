"""Retrieval quality and cost of any number of models, side by side: ``python -m training.evaluate``.

Other rooms and the benchmarks import what loads a model (``models``), scores a ranking (``metrics``), describes the
machine (``machine``) and writes tables (``tables``). It knows nothing of training.
"""
