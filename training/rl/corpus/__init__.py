"""The corpus under a moving policy: rewards stay fresh without encoding all of it again at every step.

It knows vectors and a function that encodes texts; nothing of rollouts or models.
"""
