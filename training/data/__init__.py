"""Training records and evaluation sets: reading, checking, mixing, and keeping questions apart.

All other rooms of ``training`` import from here; it knows neither models nor training.
"""
