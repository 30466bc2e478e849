"""Stage 1 of a thinker beside an encoder: what ``python -m training.sft`` does when an encoder is named."""

from __future__ import annotations

from pathlib import Path

import datasets
from trl import ModelConfig

from training.sft.batches import Collator
from training.sft.config import SFTArguments
from training.sft.order import order_of_training, targets_to_teach
from training.sft.thinker_step import ThinkerLoss, ThinkerTrainer
from training.shared.dev_scores import dev_sets
from training.shared.questions import Questions, dev_vectors
from training.shared.resume import start_or_resume
from training.shared.sources import read_sources
from training.shared.thinker_model import check_lengths, export_thinker, open_embedder, prepare, thinker_settings


def train_thinker(args: SFTArguments, model_args: ModelConfig) -> Path:
    """Trains, or goes on training, and writes encoder and thinker to ``OUTPUT_DIR/model``.

    Args:
        args: The settings.
        model_args: The adapters.

    Raises:
        ValueError: Settings, data or an earlier run in the output folder do not fit.
        FloatingPointError: A vector or the loss is not a number.
    """
    if args.gradient_accumulation_steps != 1:
        raise ValueError(
            f"gradient_accumulation_steps must be 1, got {args.gradient_accumulation_steps}: raise "
            "per_device_train_batch_size instead."
        )
    embedder = open_embedder(args, model_args)
    side = embedder.question_side
    assert side is not None
    longest = max(side.conversation.default_max_reasoning_tokens, args.given_length if args.given_reasoning else 0)
    check_lengths(side, args.query_length, longest + 1)
    training, held_out = read_sources(args)
    records = [record for rows in training.values() for record in rows]
    settings = thinker_settings(args, model_args, records)
    order = order_of_training(training, {id(record): row for row, record in enumerate(records)}, args)
    args.max_steps = len(order) // (args.per_device_train_batch_size * args.world_size)
    records = targets_to_teach(records, side.conversation, args)
    # Whatever can be refused is refused before anything is written.
    model, peft_config = prepare(embedder, model_args)
    out = Path(str(args.output_dir))
    folder = Path(args.vectors) if args.vectors else out / "vectors"
    questions = Questions.of(embedder, records, folder)
    sets = dev_vectors(embedder, dev_sets(args, held_out), folder) if args.eval_strategy != "no" else []
    trainer = ThinkerTrainer(
        questions=questions,
        settings=thinker_loss(args),
        projection_rate=args.projection_learning_rate,
        warm_up=args.projection_warm_up,
        vector_sets=sets,
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"position": range(len(order)), "row": order}),
        eval_dataset=datasets.Dataset.from_dict({"set": [dev.data.name for dev in sets]}) if sets else None,
        data_collator=Collator(records, side.conversation, args.query_length, {1: 1.0}, 0, args.seed),
        processing_class=side.tokenizer,
        peft_config=peft_config,
    )
    start_or_resume(trainer, out, settings)
    return export_thinker(trainer, embedder, args)


def thinker_loss(args: SFTArguments) -> ThinkerLoss:
    """The part of the settings that decides the loss."""
    return ThinkerLoss(
        language=args.language_weight,
        contrast=args.contrast_weight,
        triplet=args.triplet_weight,
        stay=args.stay_weight,
        temperature=args.tau,
        margin=args.margin,
        own_reasoning=args.own_reasoning,
        own_temperature=args.own_temperature,
        given_reasoning=args.given_reasoning,
        given_length=args.given_length,
    )
