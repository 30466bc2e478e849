"""Does any text break anything? Random and nasty texts through every way into an embedder.

    python -m benchmarks.fuzz --texts 100000 --out results

Texts come from hypothesis and from a list of what breaks such tools: control tokens of every known chat template,
lone surrogates, a million characters, right-to-left marks, emoji sequences, zero width, NUL. Each goes through
``encode_document`` and ``encode_query`` in batches and, one by one, through both integrations; a part of them
thinks, and goes through ``reason`` too. What must hold:

* No call fails, and every vector is finite. Lone surrogates are refused by a ValueError that names them.
* No control token gets in: the token ids of the thinker and of single models are those of a tokenizer that has never
  heard of any. An encoder reads what the stock class reads, and gives its vectors.
* A vector does not depend on the batch, to 1e-4. Where another token was chosen, it is shown from the logits of a
  pass of its own that the two likeliest tokens are within 1e-4; at most 0.05 % of the thinking rows may be such
  ties.

Beside the model, small random single models take part, one of which knows the control tokens of all templates as its
own. The result is written after every block of texts: a stopped run goes on with the same command. The exit status
is 1 when something is wrong, 2 for bad input.
"""
