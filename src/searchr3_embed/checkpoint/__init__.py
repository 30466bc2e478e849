"""A name, a folder or a hub id in; weights, tokenizer and conversation out.

The embedder and the commands import from here. It knows files and the hub, and never embeds anything.
"""
