"""The environment of stage 2: the corpus that rollouts are ranked in, while the policy moves its vectors.

``environment`` keeps the vectors and ranks, ``which_to_reencode`` decides which documents are encoded again at a step,
``drift`` corrects the others, ``graph`` finds neighbours, ``saving`` writes and reads files. This room knows vectors
and a function that encodes texts, and nothing of rollouts, rewards or models.
"""
