"""Stage 1, supervised: ``python -m training.sft``.

``train`` puts a run together from its settings, ``training_step`` computes one step of it, ``batches`` lays out what a
step reads, ``ablation`` trains the same with one part left out. Nothing outside of this folder imports from it, and it
knows nothing of stage 2; what both stages use is in ``training.shared``.
"""
