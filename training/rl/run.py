"""Stage 2: reinforcement learning of the reasoning, in an environment that never encodes the whole corpus again.

    python -m training.rl --config training/configs/mini-rl.yaml --data DATA/train --output_dir runs/rl

begins with the result of stage 1. The policy writes several reasonings for each query; each is worth what the
embedding that it leads to finds in the corpus, which is made of the documents of the sources (and of ``corpus``).
Settings as in stage 1: from the YAML file and the command line, which wins. The trained model is written to
OUTPUT_DIR/model. Killed and started again with the same command, the run goes on from its last checkpoint, environment
included, and ends with the same weights. Several GPUs: ``accelerate launch -m training.rl --config ...``; the
environment lives on the first. ``use_vllm`` lets vLLM write; it is passed on to TRL and not tested here.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import torch
import transformers
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config

from searchr3_embed.checkpoint import locate
from searchr3_embed.conversation import Conversation, find_embed_token
from searchr3_embed.engine import decode
from training.data import records as data_module
from training.data.beir import beir_folders, read_corpus
from training.data.records import Record
from training.rl.config import RLArguments, parse
from training.rl.policy import PolicyTrainer
from training.rl.rollouts import Rollouts, Task
from training.sft.run import FREE, dev_sets, finish, load_base, teacher_function
from training.shared.resume import check_same_run, fingerprint, last_checkpoint

logger = logging.getLogger("training.rl")

# Documents from which on the environment's vectors lie in a file, memory-mapped: 0.3 GB of searchr3-mini's.
MAPPED_FROM = 200_000


def stream(training: Mapping[str, Sequence[Record]], args: RLArguments) -> list[str]:
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
        found = [
            record.query for group in data_module.mix(training, weights, 1, args.seed + epochs) for record in group
        ]
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


def read_task(args: RLArguments) -> tuple[Task, dict[str, list[Record]], dict[str, list[Record]]]:
    """Reads the sources and the corpus; returns the task, and the records to train on and to choose by."""
    loaded = data_module.load(
        cast(dict, args.sources), Path(args.data) if args.data else None, exclude=[Path(p) for p in args.exclude or []]
    )
    training: dict[str, list[Record]] = {}
    held_out: dict[str, list[Record]] = {}
    for source, rows in loaded.sources.items():
        training[source], held_out[source] = data_module.split_held_out(
            rows, args.held_out_one_in, args.held_out_limit
        )
    folders = beir_folders([Path(path) for path in args.corpus or []])
    more = [text for folder in folders for text in read_corpus(folder)]
    task = Task.of([record for rows in training.values() for record in rows], more)
    logger.info("%d queries, %d documents", len(task.positives), len(task.documents))
    return task, training, held_out


def conversation_of(tokenizer: PreTrainedTokenizerBase, prompts: Any, config: Any, args: RLArguments) -> Conversation:
    """The words around the texts.

    Raises:
        ValueError: The lengths do not fit into the model's positions.
    """
    positions = config.max_position_embeddings
    talk = Conversation(tokenizer, prompts, max_length=positions, position_limit=positions, on_truncate="ignore")
    longest = len(talk.reasoning_turns([[0] * args.query_length])[0]) + args.max_completion_length
    if longest > positions or args.document_length + talk.direct_overhead > positions:
        raise ValueError(
            f"The model has {positions} positions, but query_length {args.query_length} and max_completion_length "
            f"{args.max_completion_length} make turns of {longest}, and document_length {args.document_length} of "
            f"{args.document_length + talk.direct_overhead}; lower them."
        )
    # What the model reads of a text is the stage-1 model's affair; this stage only trains on less of it.
    talk.max_length = min(positions, tokenizer.model_max_length)
    return talk


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
    if not model_args.model_name_or_path:
        raise ValueError("model_name_or_path must name the stage-1 model: a folder or a hub id.")
    out = Path(str(args.output_dir))
    folder = locate.find(model_args.model_name_or_path, revision=model_args.model_revision)
    kwargs = {
        "dtype": getattr(torch, model_args.dtype or "float32"),
        "attn_implementation": model_args.attn_implementation,
    }
    known = transformers.AutoTokenizer.from_pretrained(folder)
    model, tokenizer, prompts = load_base(folder, None, **kwargs)
    find_embed_token(known, prompts.embed_token)
    talk = conversation_of(tokenizer, prompts, model.config, args)
    if args.use_vllm and prompts.distinct_tokens:
        raise ValueError("use_vllm can't bar tokens that are written already, as this model needs (distinct_tokens).")
    task, training, held_out = read_task(args)
    settings = {name: value for name, value in args.to_dict().items() if name not in {*FREE, "corpus"}}
    adapters = {name: value for name, value in dataclasses.asdict(model_args).items() if name != "model_name_or_path"}
    records = [record for rows in training.values() for record in rows]
    content = hashlib.sha256("\n".join(map(repr, records)).encode(errors="surrogatepass")).hexdigest()[:16]
    order = stream(training, args)

    # The embed token ends a rollout; what ends a turn of the exported model is none of the trainer's business.
    generation = cast(Any, model.generation_config)
    ends = generation.eos_token_id
    generation.eos_token_id = [talk.embed_token_id, *decode.stop_token_ids(model)]
    processing = copy.deepcopy(tokenizer)
    if processing.eos_token is None:
        processing.eos_token = prompts.embed_token
    if args.use_vllm:
        args.generation_kwargs = {
            **cast(dict, args.generation_kwargs or {}),
            "stop_token_ids": generation.eos_token_id,
        }
    sets = dev_sets(args, held_out) if args.eval_strategy != "no" else []
    rollouts = Rollouts(
        talk,
        task,
        args.environment_settings,
        args.reward_settings,
        query_length=args.query_length,
        document_length=args.document_length,
        batch_size=args.rollout_batch_size,
        negatives=args.memory_negatives if args.memory_weight > 0 else 0,
        folder=out / "corpus" if len(task.documents) >= MAPPED_FROM else None,
    )
    teach = None
    if args.distil_weight > 0:
        teach = teacher_function(cast(str, args.teacher), talk, args, model.config.hidden_size)
    peft_config = get_peft_config(model_args)
    # Adapters can be switched off, and the KL has a copy of the stage-1 model already.
    copied = args.hold_weight > 0 and peft_config is None and args.beta == 0
    trainer = PolicyTrainer(
        rollouts=rollouts,
        dev_sets=sets,
        contrast=(args.contrast_weight, args.tau),
        memory_weight=args.memory_weight,
        distil_weight=args.distil_weight,
        teach=teach,
        hold_weight=args.hold_weight,
        start=load_base(folder, None, **kwargs)[0] if copied else None,
        model=model,
        args=args,
        train_dataset=datasets.Dataset.from_dict({"prompt": order}),
        eval_dataset=datasets.Dataset.from_dict({"prompt": [data.name for data in sets]}) if sets else None,
        processing_class=processing,
        peft_config=peft_config,
    )
    # Not before everything fits: a refused command leaves nothing that its correction would have to agree with.
    check_same_run(out, {**settings, **adapters, "base": fingerprint(folder), "training_records": content})
    start = last_checkpoint(out)
    if start is not None:
        logger.info("going on from %s", start)
        if trainer.accelerator.is_main_process:
            rollouts.restore(start)
    began = time.time()
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    logger.info("trained in %.0f s", time.time() - began)
    generation.eos_token_id = ends
    return finish(trainer, tokenizer, talk, args, folder, kwargs)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (2 for input that cannot be used)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    transformers.utils.logging.set_verbosity_warning()
    try:
        folder = train(*parse((__doc__ or "").strip(), argv))
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"error: {' '.join([str(error), *getattr(error, '__notes__', [])])}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
