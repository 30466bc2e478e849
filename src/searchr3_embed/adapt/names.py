"""The names of what can be trained; imports nothing, so that a command can list them at once."""

LEARNERS = ("thinker", "question-encoder", "projection")
DEFAULT = "question-encoder"
