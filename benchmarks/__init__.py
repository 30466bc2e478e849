"""Benchmarks, run from a clone as ``python -m benchmarks.<name>``."""
