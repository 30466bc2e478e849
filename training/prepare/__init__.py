"""Commands that make training records: reasoning targets, hard negatives, cloze questions, synthetic triples.

Each writes files that ``training.data`` reads; ``chat_client``, ``chat_store`` and ``chat_command`` are shared
by those that ask a language model. Nothing outside of this folder imports from it; it knows nothing of training.
"""
