"""How each kind of checkpoint embeds and thinks: the paper's single model, and an encoder with a thinker beside it.

Both modules offer ``embed``, ``think`` and ``finish_reason``; the public class asks the one that fits what it loaded.
"""
