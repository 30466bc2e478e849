"""Stage 1: supervised training of a causal language model into a reasoning embedder.

    python -m training.sft --config training/configs/single-mini.yaml --data DATA/train --output_dir runs/sft

The settings come from the YAML file; those given on the command line win. The trained
model is written to OUTPUT_DIR/model, ready for ``ReasoningEmbedder``. A run that was killed goes
on from its last checkpoint when the same command is given again, and ends with the same weights. Several GPUs:
``accelerate launch --config_file training/configs/fsdp.yaml -m training.sft --config ...``
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config

from searchr3_embed.conversation import Conversation
from searchr3_embed.prompt_words import Prompts
from training.sft.batches import Collator
from training.sft.config import SFTArguments, parse
from training.sft.order import order_of_training, targets_to_teach
from training.sft.thinker_train import train_thinker
from training.sft.training_step import EmbeddingTrainer
from training.shared.command import run_command
from training.shared.dev_scores import dev_sets
from training.shared.export import export_result
from training.shared.resume import deciding_settings, start_or_resume
from training.shared.sources import read_sources
from training.shared.starting_model import find_start, load_start
from training.shared.teacher import Teach, load_teacher

logger = logging.getLogger("training.sft")


def open_conversation(
    tokenizer: PreTrainedTokenizerBase, prompts: Prompts, model: PreTrainedModel, args: SFTArguments
) -> Conversation:
    """The words around the texts, with turns as long as the settings and the model's positions allow."""
    positions = model.config.max_position_embeddings
    longest = min(args.max_length or 1024, positions)
    return Conversation(tokenizer, prompts, max_length=longest, position_limit=positions, on_truncate="ignore")


def train(args: SFTArguments, model_args: ModelConfig) -> Path:
    """Trains, or goes on training, and exports the result.

    Args:
        args: The settings.
        model_args: The base and its adapters.

    Returns:
        The folder of the exported model.

    Raises:
        ValueError: Settings, data or an earlier run in the output folder do not fit.
        FloatingPointError: The loss is not a number.
    """
    if args.encoder:
        return train_thinker(args, model_args)
    folder, kwargs = find_start(model_args, "the base to train")
    model, tokenizer, prompts = load_start(folder, cast(Any, args.prompts), **kwargs)
    conversation = open_conversation(tokenizer, prompts, model, args)
    training, held_out = read_sources(args)
    records = [record for rows in training.values() for record in rows]
    # Before max_steps is set, which follows from the others.
    settings = deciding_settings(args, model_args, folder, records)
    order = order_of_training(training, {id(record): row for row, record in enumerate(records)}, args)
    args.max_steps = len(order) // (args.per_device_train_batch_size * args.world_size)
    records = targets_to_teach(records, conversation, args)

    peft_config = get_peft_config(model_args)
    if peft_config is not None:
        cast(Any, peft_config).trainable_token_indices = [conversation.embed_token_id]
    # Trained in full, the model needs a frozen copy for L_KL; with adapters, switching them off gives it.
    copied = peft_config is None and args.kl_weight > 0
    sets = dev_sets(args, held_out) if args.eval_strategy != "no" else []
    trainer = EmbeddingTrainer(
        conversation=conversation,
        settings=args.loss,
        tokens_per_forward=args.tokens_per_forward,
        grad_cache=args.grad_cache,
        reference=load_start(folder, cast(Any, args.prompts), **kwargs)[0] if copied else None,
        teach=teacher_of(args, conversation, model.config.hidden_size),
        dev_sets=sets,
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"position": range(len(order)), "row": order}),
        eval_dataset=datasets.Dataset.from_dict({"set": [data.name for data in sets]}) if sets else None,
        data_collator=Collator(
            records, conversation, args.query_length, cast(Any, args.document_lengths), args.negatives, args.seed
        ),
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    start_or_resume(trainer, Path(str(args.output_dir)), settings)
    return export_result(trainer, tokenizer, conversation, args, folder, kwargs)


def teacher_of(args: SFTArguments, conversation: Conversation, dimension: int) -> Teach | None:
    """The teacher, where a term of the loss needs it; vectors that are compared must have ``dimension``."""
    if not args.teacher or not args.distilled:
        return None
    compared = max(args.distil_weight, args.distil_reasoning_weight) > 0
    return load_teacher(args.teacher, conversation, args, dimension if compared else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    return run_command(lambda: train(*parse((__doc__ or "").strip(), argv)))
