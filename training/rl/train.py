"""Stage 2: reinforcement learning of the reasoning, without ever encoding the whole corpus again.

    python -m training.rl --config training/configs/single-mini-rl.yaml --data DATA/train --output_dir runs/rl

begins with the result of stage 1. The policy writes several reasonings for each query. Each leads to an embedding, and
is rewarded for what that finds in the corpus: the documents of the sources, and of the folders that ``corpus`` names.
The settings come from the YAML file; those given on the command line win. The trained model is written to
OUTPUT_DIR/model. A run that was killed goes on from its last checkpoint, environment included, when the same command
is given again, and ends with the same weights. Several GPUs: ``accelerate launch -m training.rl --config ...``; the
environment lives on the first. ``use_vllm`` lets vLLM write; it is passed on to TRL and not tested here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config

from searchr3_embed.conversation import Conversation, find_embed_token
from training.rl.config import RLArguments, parse
from training.rl.policy_update import PolicyTrainer
from training.rl.rollouts import Rollouts
from training.rl.rounds import end_rollouts_at_embed_token, order_of_training, read_task
from training.rl.thinker_train import train_thinker
from training.shared.command import run_command
from training.shared.dev_scores import dev_sets
from training.shared.export import export_result
from training.shared.resume import deciding_settings, start_or_resume
from training.shared.starting_model import find_start, load_start
from training.shared.teacher import load_teacher

logger = logging.getLogger("training.rl")

# With so many documents or more, the environment's vectors lie in a file, memory-mapped: 0.3 GB for searchr3-mini.
MAPPED_FROM = 200_000


def conversation_of(tokenizer: PreTrainedTokenizerBase, prompts: Any, config: Any, args: RLArguments) -> Conversation:
    """The words around the texts.

    Raises:
        ValueError: The lengths do not fit into the model's positions.
    """
    positions = config.max_position_embeddings
    conversation = Conversation(
        tokenizer, prompts, max_length=positions, position_limit=positions, on_truncate="ignore"
    )
    longest = len(conversation.reasoning_turns([[0] * args.query_length])[0]) + args.max_completion_length
    if longest > positions or args.document_length + conversation.direct_overhead > positions:
        raise ValueError(
            f"The model has {positions} positions, but query_length {args.query_length} and max_completion_length "
            f"{args.max_completion_length} make turns of {longest}, and document_length {args.document_length} of "
            f"{args.document_length + conversation.direct_overhead}; lower them."
        )
    # The exported model reads as much of a text as the stage-1 model did, though this stage trains on less.
    conversation.max_length = min(positions, tokenizer.model_max_length)
    return conversation


def load_stage_1(
    model_args: ModelConfig, args: RLArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Conversation, Path, dict[str, Any]]:
    """The stage-1 model, its tokenizer and conversation, its folder, and how it is loaded.

    Raises:
        ValueError: The model has not learned to embed, or the settings do not fit it.
    """
    folder, kwargs = find_start(model_args, "the stage-1 model")
    known = transformers.AutoTokenizer.from_pretrained(folder)  # a folder here  # nosec B615
    model, tokenizer, prompts = load_start(folder, None, **kwargs)
    find_embed_token(known, prompts.embed_token)
    conversation = conversation_of(tokenizer, prompts, model.config, args)
    if args.use_vllm and prompts.distinct_tokens:
        raise ValueError("use_vllm can't bar tokens that are written already, as this model needs (distinct_tokens).")
    return model, tokenizer, conversation, folder, kwargs


def train(args: RLArguments, model_args: ModelConfig) -> Path:
    """Trains, or goes on training, and exports the result.

    Args:
        args: The settings.
        model_args: The stage-1 model and its adapters.

    Returns:
        The folder of the exported model.

    Raises:
        ValueError: Settings, data or an earlier run in the output folder do not fit.
        FloatingPointError: The loss is not a number.
    """
    if args.encoder:
        return train_thinker(args, model_args)
    out = Path(str(args.output_dir))
    model, tokenizer, conversation, folder, kwargs = load_stage_1(model_args, args)
    task, training, held_out = read_task(args)
    # Before max_steps is set, which follows from the others.
    settings = deciding_settings(args, model_args, folder, [one for rows in training.values() for one in rows])
    order = order_of_training(training, args)
    ends = cast(Any, model.generation_config).eos_token_id
    processing = end_rollouts_at_embed_token(model, tokenizer, conversation.embed_token_id, args)
    sets = dev_sets(args, held_out) if args.eval_strategy != "no" else []
    rollouts = Rollouts.of(args, conversation, task, out / "corpus" if len(task.documents) >= MAPPED_FROM else None)
    taught = args.distil_weight > 0
    peft_config = get_peft_config(model_args)
    # Adapters can be switched off, and the KL has a copy of the stage-1 model already.
    copied = args.hold_weight > 0 and peft_config is None and args.beta == 0
    trainer = PolicyTrainer(
        rollouts=rollouts,
        dev_sets=sets,
        contrast=(args.contrast_weight, args.tau),
        memory_weight=args.memory_weight,
        distil_weight=args.distil_weight,
        teach=load_teacher(cast(str, args.teacher), conversation, args, model.config.hidden_size) if taught else None,
        hold_weight=args.hold_weight,
        start=load_start(folder, None, **kwargs)[0] if copied else None,
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"prompt": order}),
        eval_dataset=datasets.Dataset.from_dict({"prompt": [data.name for data in sets]}) if sets else None,
        processing_class=processing,
        peft_config=peft_config,
    )
    start_or_resume(trainer, out, settings, rollouts.restore if trainer.accelerator.is_main_process else None)
    # The exported model ends its turns as the stage-1 model did.
    cast(Any, model.generation_config).eos_token_id = ends
    return export_result(trainer, tokenizer, conversation, args, folder, kwargs)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    return run_command(lambda: train(*parse((__doc__ or "").strip(), argv)))
