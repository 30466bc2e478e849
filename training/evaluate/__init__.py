"""Retrieval quality and cost of any number of models, side by side: ``python -m training.evaluate``.

Other rooms import the parts that load a model and score a ranking.
"""
