"""A name, a folder or a hub id in; weights, tokenizer and conversation out; and what saving writes.

``locate`` finds the folder, ``load`` reads it (``released_prompts`` helps with foreign ones), ``saving`` writes one;
all may be imported from outside. It knows files, the hub and transformers' models; it never embeds anything.
"""


class CheckpointError(ValueError):
    """A checkpoint can't be found or used; the message says why and what to do."""


SETTINGS_FILE = "searchr3.json"
"""In the folder of an encoder with a thinker, and in no other."""

THINKER_FOLDER = "thinker"
