"""Stage 1, supervised: ``python -m training.sft``.

Nothing outside of this folder imports from it.
"""
