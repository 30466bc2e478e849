"""Stage 1: supervised training of a causal language model into a reasoning embedder.

    python -m training.sft --config training/configs/mini.yaml --data DATA/train --output_dir runs/sft

The settings come from the YAML file; any of them can be given on the command line too, where it wins. The trained
model is written to OUTPUT_DIR/model, ready for ``ReasoningEmbedder``. Killed and started again with the same command,
the run goes on from its last checkpoint and ends with the same weights. Several GPUs:
``accelerate launch --config_file training/configs/fsdp.yaml -m training.sft --config ...``
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config

from searchr3_embed.checkpoint import locate
from searchr3_embed.conversation import Conversation
from searchr3_embed.prompts import PROMPTS_FILE, Prompts
from training.data import records as data_module
from training.data.beir import BeirData, beir_folders, read_beir
from training.data.records import Record
from training.prepare.reasoning_targets import load_embedder
from training.sft.batches import Collator
from training.sft.config import SFTArguments, parse
from training.sft.trainer import EmbeddingTrainer
from training.shared import dev_scores
from training.shared.export import average, export
from training.shared.resume import check_same_run, fingerprint, last_checkpoint, writing

logger = logging.getLogger("training.sft")

# Settings that may differ between a run and its continuation: they do not decide the weights.
FREE = {
    "output_dir", "data", "logging_steps", "logging_dir", "logging_strategy", "logging_first_step", "report_to",
    "run_name", "save_total_limit", "disable_tqdm", "log_level", "log_level_replica", "dataloader_num_workers",
    "dataloader_pin_memory", "export_dtype", "dev", "local_rank", "trackio_space_id", "project", "save_steps",
}  # fmt: skip


def load_base(
    folder: Path, prompts: Mapping[str, Any] | None, **kwargs: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Prompts]:
    """Loads the model to train, and adds the embed token where it has none.

    Args:
        folder: A causal language model: a plain one with a chat template, or a checkpoint of this package.
        prompts: Fields of ``Prompts``; None takes the checkpoint's own.
        **kwargs: Passed to ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        ValueError: There is no chat template, or there are no prompts.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise ValueError(
            f"{folder} has no chat template (chat_template.jinja): the turns can't be written. Take an instruction-"
            "tuned model, or add the template that it was trained with."
        )
    own = Prompts.load(folder) if (folder / PROMPTS_FILE).exists() else None
    words = given_prompts(prompts) if prompts is not None else own
    if words is None:
        raise ValueError(f"{folder} holds no {PROMPTS_FILE}; the settings must give prompts.")
    if own is not None and own != words:
        logger.warning("the settings' prompts replace those of %s", folder)
    model = AutoModelForCausalLM.from_pretrained(folder, **kwargs)
    if words.embed_token not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [words.embed_token]})
        add_token(model, cast(int, tokenizer.convert_tokens_to_ids(words.embed_token)), tokenizer.eos_token_id)
    return model, tokenizer, words


def given_prompts(prompts: Any) -> Prompts:
    """The words that settings give.

    Raises:
        ValueError: They are no mapping, or hold an unknown name.
    """
    known = [field.name for field in dataclasses.fields(Prompts)]
    if not isinstance(prompts, Mapping) or set(prompts) - set(known):
        raise ValueError(f"prompts must map some of {known} to values, got {prompts!r}.")
    return Prompts(**prompts)


@torch.no_grad()
def add_token(model: Any, token: int, like: int | None) -> None:
    """Gives a new token rows in the embedding and in the head; they begin as those of another token.

    Args:
        model: Changed in place; grows only where it has no spare row, as Qwen's padded vocabulary has.
        token: Id of the new token.
        like: Id of the token that ends a turn; None takes the mean of all tokens.
    """
    if model.get_input_embeddings().weight.shape[0] <= token:
        model.resize_token_embeddings(token + 1, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        rows = module.weight
        rows[token] = rows[:token].mean(dim=0) if like is None else rows[like]


def stream(training: Mapping[str, Sequence[Record]], rows: Mapping[int, int], args: SFTArguments) -> list[int]:
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
        groups = data_module.mix(training, weights, batch // args.groups_per_step, args.seed + epochs)
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
    """The records, without reasoning targets that exceed the budget: they would teach to break off."""
    budget = conversation.default_max_reasoning_tokens
    lengths = iter(conversation.text_ids([r.reasoning for r in records if r.reasoning is not None]))
    fits = [r.reasoning is None or len(next(lengths)) <= budget for r in records]
    if dropped := fits.count(False):
        logger.warning("%d reasoning targets are longer than %d tokens and left out", dropped, budget)
    return [r if fit else dataclasses.replace(r, reasoning=None) for r, fit in zip(records, fits, strict=True)]


def teacher_function(
    name: str, conversation: Conversation, args: Any, dimension: int | None = None
) -> Callable[..., Tensor]:
    """A function from token ids of texts to the unit vectors of a sentence-transformers model.

    Args:
        name: Its folder or hub id; "teacher" is all-MiniLM-L6-v2.
        conversation: Decodes the ids.
        args: Settings of a run: its device, and whether it computes in bfloat16.
        dimension: What its vectors must have, to be compared with those of the model in training; None for any.

    Raises:
        ValueError: It cannot be loaded, or has another dimension.
    """
    model = load_embedder(name).to(args.device).eval()
    found = model.get_embedding_dimension()
    if dimension is not None and found != dimension:
        raise ValueError(
            f"teacher {name!r} has vectors of {found} dimensions and the model of {dimension}; distil_weight and "
            "distil_reasoning_weight need the same (relation_weight of stage 1 does not)."
        )

    def teach(bodies: Sequence[Sequence[int]]) -> Tensor:
        texts = [conversation.decode(body) for body in bodies]
        with torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
            vectors = model.encode(texts, convert_to_tensor=True, show_progress_bar=False, batch_size=32)
        return F.normalize(vectors.float(), dim=-1)

    return teach


def dev_sets(args: Any, held_out: Mapping[str, Sequence[Record]]) -> list[BeirData]:
    """The sets that choose the best checkpoint."""
    sets = [read_beir(folder, split="dev") for folder in beir_folders([Path(path) for path in args.dev or []])]
    return sets + [dev_scores.held_out_set(source, records) for source, records in held_out.items() if records]


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
    if not model_args.model_name_or_path:
        raise ValueError("model_name_or_path must name the base to train: a folder or a hub id.")
    out = Path(str(args.output_dir))
    folder = locate.find(model_args.model_name_or_path, revision=model_args.model_revision)
    kwargs = {
        "dtype": getattr(torch, model_args.dtype or "float32"),
        "attn_implementation": model_args.attn_implementation,
    }
    model, tokenizer, prompts = load_base(folder, cast(Any, args.prompts), **kwargs)
    conversation = Conversation(
        tokenizer,
        prompts,
        max_length=min(args.max_length or 1024, model.config.max_position_embeddings),
        position_limit=model.config.max_position_embeddings,
        on_truncate="ignore",
    )
    loaded = data_module.load(
        cast(dict, args.sources), Path(args.data) if args.data else None, exclude=[Path(p) for p in args.exclude or []]
    )
    training: dict[str, list[Record]] = {}
    held_out: dict[str, list[Record]] = {}
    for source, rows in loaded.sources.items():
        training[source], held_out[source] = data_module.split_held_out(
            rows, args.held_out_one_in, args.held_out_limit
        )
    records = [record for rows in training.values() for record in rows]
    settings = {name: value for name, value in args.to_dict().items() if name not in FREE}
    adapters = {name: value for name, value in dataclasses.asdict(model_args).items() if name != "model_name_or_path"}
    content = hashlib.sha256("\n".join(map(repr, records)).encode(errors="surrogatepass")).hexdigest()[:16]
    order = stream(training, {id(record): row for row, record in enumerate(records)}, args)
    args.max_steps = len(order) // (args.per_device_train_batch_size * args.world_size)
    records = within_budget(records, conversation)

    peft_config = get_peft_config(model_args)
    if peft_config is not None:
        cast(Any, peft_config).trainable_token_indices = [conversation.embed_token_id]
    # Trained in full, the model needs a frozen copy of itself for L_KL; with adapters it is its own.
    copied = peft_config is None and args.kl_weight > 0
    reference = load_base(folder, cast(Any, args.prompts), **kwargs)[0] if copied else None
    sets = dev_sets(args, held_out) if args.eval_strategy != "no" else []
    near = max(args.distil_weight, args.distil_reasoning_weight) > 0
    width = model.config.hidden_size if near else None
    trainer = EmbeddingTrainer(
        conversation=conversation,
        settings=args.loss,
        tokens_per_forward=args.tokens_per_forward,
        grad_cache=args.grad_cache,
        reference=reference,
        teach=teacher_function(args.teacher, conversation, args, width) if args.teacher and args.distilled else None,
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
    # Not before everything fits: a refused command leaves nothing that its correction would have to agree with.
    check_same_run(out, {**settings, **adapters, "base": fingerprint(folder), "training_records": content})
    start = last_checkpoint(out)
    if start is not None:
        logger.info("going on from %s", start)
    began = time.time()
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    logger.info("trained in %.0f s", time.time() - began)
    return finish(trainer, tokenizer, conversation, args, folder, kwargs)


def finish(
    trainer: transformers.Trainer,
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    args: Any,
    folder: Path,
    kwargs: Mapping[str, Any],
) -> Path:
    """Exports the trained model and the log of its losses; ``args`` are the settings of either stage."""
    out = Path(str(args.output_dir))
    trained: Any = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(trained, "merge_and_unload"):
        trained = trained.merge_and_unload()
    if args.average_with_start:
        average(
            trained, load_base(folder, dataclasses.asdict(conversation.prompts), **kwargs)[0], args.average_with_start
        )
    target = out / "model"
    if trainer.is_world_process_zero():
        # TRL's head is a function put on the instance; the saved class is the plain one.
        with writing():
            export(trained, tokenizer, conversation, target, getattr(torch, args.export_dtype))
            lines = "".join(json.dumps(row) + "\n" for row in trainer.state.log_history)
            (out / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return target


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
