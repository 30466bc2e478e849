"""Training and evaluation of reasoning embedders: run from a clone as ``python -m training.<room>``."""
