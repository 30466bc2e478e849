"""Commands that make training records: reasoning targets, hard negatives, cloze questions, synthetic triples.

Each writes files that ``training.data`` reads; nothing imports from here but these commands themselves.
"""
