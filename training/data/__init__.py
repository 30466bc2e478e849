"""Training records and evaluation sets: reading, checking, mixing, and keeping questions apart.

All other rooms of ``training``, and the benchmarks, import from here; it knows neither models nor training.
"""
