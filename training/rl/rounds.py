"""What a run of stage 2 asks in which order, among which documents, and where a rollout ends."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from searchr3_embed.engine.decode import stop_token_ids
from training.data.beir import beir_folders, read_corpus
from training.data.mixing import mix
from training.data.records import Record
from training.rl.config import RLArguments
from training.rl.rollouts import Task
from training.shared.sources import Sources, read_sources

logger = logging.getLogger("training.rl")


def order_of_training(training: Mapping[str, Sequence[Record]], args: RLArguments) -> list[str]:
    """Queries in the order of training, as many epochs as ``max_steps`` or ``num_train_epochs`` ask for.

    Sets ``max_steps``.

    Raises:
        ValueError: There are not enough queries for one step.
    """
    weights = {name: float(cast(dict, args.sources)[name]) for name in training}
    asked = cast(int, args.generation_batch_size) // args.num_generations
    updates = cast(int, args.steps_per_generation) * args.num_iterations / args.gradient_accumulation_steps
    wanted = math.ceil(args.max_steps / updates) * asked
    order: list[str] = []
    epochs = 0
    while len(order) < wanted if args.max_steps > 0 else epochs < args.num_train_epochs:
        found = [record.query for group in mix(training, weights, 1, args.seed + epochs) for record in group]
        if not found:
            raise ValueError(f"The sources' weights {weights} leave no query of them.")
        order += found
        epochs += 1
    rounds = len(order) // asked
    if not rounds:
        raise ValueError(
            f"{len(order)} queries are fewer than the {asked} of one step (generation_batch_size "
            f"{args.generation_batch_size} / num_generations {args.num_generations}); lower generation_batch_size or "
            "raise num_train_epochs."
        )
    if args.max_steps <= 0:
        args.max_steps = int(rounds * updates)
    return order[: (wanted or len(order)) // asked * asked]


def read_task(args: RLArguments) -> tuple[Task, Sources, Sources]:
    """Reads the sources and the corpus; returns the task, and the records to train on and to choose by."""
    training, held_out = read_sources(args)
    folders = beir_folders([Path(path) for path in args.corpus or []])
    more = [text for folder in folders for text in read_corpus(folder)]
    task = Task.of([record for rows in training.values() for record in rows], more)
    logger.info("%d queries, %d documents", len(task.positives), len(task.documents))
    return task, training, held_out


def end_rollouts_at_embed_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, embed_token_id: int, args: RLArguments
) -> PreTrainedTokenizerBase:
    """Tells the trainer where a rollout ends, in the model's generation settings; returns a tokenizer for it."""
    generation = cast(Any, model.generation_config)
    generation.eos_token_id = [embed_token_id, *stop_token_ids(model)]
    if args.use_vllm:
        given = cast(dict, args.generation_kwargs or {})
        args.generation_kwargs = {**given, "stop_token_ids": generation.eos_token_id}
    processing = copy.deepcopy(tokenizer)
    if processing.eos_token is None:
        processing.eos_token = cast(str, tokenizer.convert_ids_to_tokens(embed_token_id))
    return processing
