"""Which records a run of stage 1 sees, and in which order."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import cast

from searchr3_embed.conversation import Conversation
from training.data.mixing import mix
from training.data.records import Record
from training.sft.config import SFTArguments

logger = logging.getLogger("training.sft")


def order_of_training(
    training: Mapping[str, Sequence[Record]], rows: Mapping[int, int], args: SFTArguments
) -> list[int]:
    """Row numbers in the order of training, as many epochs as ``max_steps`` or ``num_train_epochs`` ask for.

    Raises:
        ValueError: No source holds enough records for its share of a step.
    """
    batch = args.per_device_train_batch_size * args.world_size
    if batch % args.groups_per_step:
        raise ValueError(f"groups_per_step ({args.groups_per_step}) must divide the records of a step ({batch}).")
    weights = {name: float(cast(dict, args.sources)[name]) for name in training}
    order: list[int] = []
    epochs = 0
    while len(order) < batch * args.max_steps if args.max_steps > 0 else epochs < args.num_train_epochs:
        groups = mix(training, weights, batch // args.groups_per_step, args.seed + epochs)
        if not groups:
            raise ValueError(
                f"No source has {batch // args.groups_per_step} records times its weight, as many as it gives to one "
                "step; lower per_device_train_batch_size or raise groups_per_step."
            )
        order += [rows[id(record)] for group in groups for record in group]
        epochs += 1
    steps = args.max_steps if args.max_steps > 0 else len(order) // batch
    return order[: steps * batch]


def within_budget(records: Sequence[Record], conversation: Conversation) -> list[Record]:
    """The records, without the reasoning targets that are too long: those would teach the model to be cut off."""
    budget = conversation.default_max_reasoning_tokens
    lengths = iter(conversation.text_ids([r.reasoning for r in records if r.reasoning is not None]))
    fits = [r.reasoning is None or len(next(lengths)) <= budget for r in records]
    if dropped := fits.count(False):
        logger.warning("%d reasoning targets are longer than %d tokens and left out", dropped, budget)
    return [r if fit else dataclasses.replace(r, reasoning=None) for r, fit in zip(records, fits, strict=True)]


def targets_to_teach(records: Sequence[Record], conversation: Conversation, args: SFTArguments) -> list[Record]:
    """The records, with the reasoning targets that are taught: none too long, empty ones if settings say so."""
    fitting = within_budget(records, conversation)
    if args.teach_empty:
        return fitting
    return [record if record.reasoning else dataclasses.replace(record, reasoning=None) for record in fitting]
