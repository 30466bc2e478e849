"""Stage 2 of a thinker beside an encoder: what ``python -m training.rl`` does when an encoder is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import datasets
from trl import ModelConfig

from training.rl.config import RLArguments
from training.rl.rounds import end_rollouts_at_embed_token, order_of_training, read_task
from training.rl.thinker_rollouts import EXACT, ThinkerRollouts
from training.rl.thinker_update import ThinkerPolicyTrainer
from training.shared.dev_scores import dev_sets
from training.shared.questions import Questions, dev_vectors
from training.shared.resume import start_or_resume
from training.shared.thinker_model import check_lengths, export_thinker, open_embedder, prepare, thinker_settings


def train_thinker(args: RLArguments, model_args: ModelConfig) -> Path:
    """Trains, or goes on training, and writes encoder and thinker to ``OUTPUT_DIR/model``.

    Raises:
        ValueError: Settings, data or an earlier run in the output folder do not fit.
        FloatingPointError: A vector or the loss is not a number.
    """
    embedder = open_embedder(args, model_args)
    side = embedder.question_side
    assert side is not None
    check_lengths(side, args.query_length, args.max_completion_length)
    out = Path(str(args.output_dir))
    task, training, held_out = read_task(args)
    records = [record for rows in training.values() for record in rows]
    settings = thinker_settings(args, model_args, records)
    order = order_of_training(training, args)
    # Whatever can be refused is refused before anything is written.
    model, peft_config = prepare(embedder, model_args)
    folder = Path(args.vectors) if args.vectors else out / "vectors"
    questions = Questions.of(embedder, records, folder, task.documents)
    sets = dev_vectors(embedder, dev_sets(args, held_out), folder) if args.eval_strategy != "no" else []
    ends = cast(Any, model.generation_config).eos_token_id
    processing = end_rollouts_at_embed_token(model, side.tokenizer, side.conversation.embed_token_id, args)
    rollouts = ThinkerRollouts(
        side.conversation,
        task,
        EXACT,
        args.reward_settings,
        query_length=args.query_length,
        document_length=args.document_length,
        batch_size=args.rollout_batch_size,
        questions=questions,
    )
    trainer = ThinkerPolicyTrainer(
        rollouts=rollouts,
        contrast=(args.contrast_weight, args.tau),
        stay_weight=args.stay_weight,
        projection_rate=args.projection_learning_rate,
        vector_sets=sets,
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"prompt": order}),
        eval_dataset=datasets.Dataset.from_dict({"prompt": [dev.data.name for dev in sets]}) if sets else None,
        processing_class=processing,
        peft_config=peft_config,
    )
    start_or_resume(trainer, out, settings, rollouts.restore if trainer.accelerator.is_main_process else None)
    # The exported thinker ends its turns as it did before.
    cast(Any, model.generation_config).eos_token_id = ends
    return export_thinker(trainer, embedder, args)
