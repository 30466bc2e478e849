"""Makes the causal base of searchr3-mini from a bidirectional sentence encoder, without training.

    python -m training.models.causal_bert --out runs/base

An encoder whose sentence embedding is the mean of its last hidden states is close to a causal embedder already: its
weights are loaded into a causal language model, one layer is added that averages the states before a token, and one
token is added to the vocabulary. The state at that token is then the mean of the encoder's states when each token sees
only those before it. ``training.sft`` turns it into an embedder that writes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BertLMHeadModel, PreTrainedTokenizerBase

from searchr3_embed import interruption
from searchr3_embed.conversation import Conversation
from searchr3_embed.prompt_words import Prompts
from training.evaluate.models import teacher_source
from training.shared.export import export

CHAT_TEMPLATE = "[CLS]{% for m in messages %}{{ m.content }}{% if m.role != 'assistant' %}[SEP]{% endif %}{% endfor %}"
# The question is read twice before anything is written: only the second reading of a word sees the whole question
# (Springer et al. 2024, "Repetition improves language model embeddings", https://arxiv.org/abs/2402.15449).
PROMPTS = Prompts(
    direct_answer="<|embed_token|>",
    reasoning_answer="{text}[SEP]",
    max_reasoning_tokens=24,
    distinct_tokens=True,
)
# How much the mean counts in the added layer against the token's own state. Without training, the mean cosine to the
# encoder's own embedding of a finance question is 0.80 with 3, 0.85 with 8, and 0.90 with 8 when it is read twice.
MEAN_SHARE = 8.0


def make_causal(folder: str, prompts: Prompts = PROMPTS) -> tuple[BertLMHeadModel, PreTrainedTokenizerBase]:
    """Loads an encoder's weights into a causal language model with one more layer, and adds the embed token.

    Args:
        folder: Folder or hub id of a BERT encoder.
        prompts: Names the embed token.

    Returns:
        The model in float32 with dropout off, and its tokenizer with a chat template.

    Raises:
        ValueError: The model is no BERT encoder.
    """
    config = AutoConfig.from_pretrained(folder)  # a folder here  # nosec B615
    if config.model_type != "bert":
        raise ValueError(f"{folder} is a model of type {config.model_type!r}; a BERT encoder ('bert') is needed.")
    tokenizer = AutoTokenizer.from_pretrained(folder)  # a folder here  # nosec B615
    tokenizer.add_special_tokens({"additional_special_tokens": [prompts.embed_token]})
    tokenizer.chat_template = CHAT_TEMPLATE
    embed_id = tokenizer.convert_tokens_to_ids(prompts.embed_token)
    config.is_decoder = True
    config.use_cache = True
    config.num_hidden_layers += 1
    # Without dropout a run can be repeated to the bit, and distillation has no use for it.
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.eos_token_id = embed_id
    model = BertLMHeadModel.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )  # a folder here  # nosec B615
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        rows: Any = model.get_input_embeddings().weight
        rows[embed_id] = rows[tokenizer.cls_token_id]
        # The head is new: start it as the identity, which already prefers tokens like those just read.
        transform = model.cls.predictions.transform.dense
        torch.nn.init.eye_(transform.weight)
        torch.nn.init.zeros_(transform.bias)
        _average_states(model.bert.encoder.layer[-1])
    return model, tokenizer


def _average_states(layer: Any) -> None:
    """Starts a layer as mean pooling: every token attends alike to all before it, and passes on what they are."""
    attention = layer.attention
    inner = attention.self
    for dense in (inner.query, inner.key, inner.value, attention.output.dense, layer.output.dense):
        torch.nn.init.zeros_(dense.weight)
        torch.nn.init.zeros_(dense.bias)
    # Queries are zero, so all keys count the same; the keys are not zero, or the queries would never learn.
    torch.nn.init.eye_(inner.key.weight)
    torch.nn.init.eye_(inner.value.weight)
    torch.nn.init.eye_(attention.output.dense.weight).mul_(MEAN_SHARE)


def make(encoder: str, max_length: int, out: Path, seed: int = 7) -> Path:
    """Writes the base in the layout that ReasoningEmbedder and ``training.sft`` load, in half precision.

    Args:
        encoder: Folder or hub id of a BERT sentence encoder with mean pooling.
        max_length: Longest direct turn in tokens.
        out: Folder to write.
        seed: Of the weights that are drawn: those inside the added layer, which have no effect before training.

    Returns:
        ``out``.

    Raises:
        ValueError: The encoder or the length does not fit.
    """
    torch.manual_seed(seed)
    model, tokenizer = make_causal(encoder)
    limit = model.config.max_position_embeddings
    if not 8 <= max_length <= limit:
        raise ValueError(f"max_length must be from 8 to {limit}, the encoder's last position, got {max_length}.")
    conversation = Conversation(tokenizer, PROMPTS, max_length=max_length, position_limit=limit, on_truncate="ignore")
    export(model, tokenizer, conversation, out)
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    parser = argparse.ArgumentParser(
        prog="python -m training.models.causal_bert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--encoder",
        default="teacher",
        help="folder or hub id of a BERT sentence encoder with mean pooling (default: teacher, all-MiniLM-L6-v2)",
    )
    parser.add_argument("--max-length", type=int, default=256, help="tokens it reads of a text (default: 256)")
    parser.add_argument("--seed", type=int, default=7, help="of the few weights that are drawn (default: 7)")
    args = parser.parse_args(argv)
    try:
        encoder = teacher_source() if args.encoder == "teacher" else args.encoder
        print(make(encoder, args.max_length, args.out, args.seed))
    except (OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(interruption.run(main, "interrupted; the same command begins again, and nothing half written is left"))
