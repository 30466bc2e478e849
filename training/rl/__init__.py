"""Stage 2, reinforcement learning: ``python -m training.rl``.

``train`` puts a run together from its settings, ``rollouts`` writes and embeds reasonings, ``reward`` says what they
are worth, ``policy_update`` learns from that. Only benchmarks import from this folder: the reward, and the environment
in ``corpus``. It knows nothing of stage 1; what both stages use is in ``training.shared``.
"""
