"""Stage 2, reinforcement learning: ``python -m training.rl``.

Nothing outside of this folder imports from it, but for benchmarks of ``rl.corpus``.
"""
