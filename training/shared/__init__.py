"""What both stages need: settings, sources, the starting model, the teacher, losses, dev scores, resuming, export.

``training.sft``, ``training.rl`` and ``training.models`` import from here. Nothing here imports from them, so it never
knows which stage is running.
"""
