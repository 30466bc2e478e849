"""Goes on with a run that was stopped: the same settings, the newest whole checkpoint.

``run.json`` in a run's folder holds the settings that decide its weights; a command with others is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from safetensors import SafetensorError

from searchr3_embed.files import write_json
from training.data.records import Record

if TYPE_CHECKING:
    from trl import ModelConfig

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
STATE_FILE = "trainer_state.json"
# Settings that may differ between a run and its continuation: they do not decide the weights. (The corpus of stage 2
# does; its environment checks it.)
FREE = {
    "output_dir", "data", "logging_steps", "logging_dir", "logging_strategy", "logging_first_step", "report_to",
    "run_name", "save_total_limit", "disable_tqdm", "log_level", "log_level_replica", "dataloader_num_workers",
    "dataloader_pin_memory", "export_dtype", "dev", "local_rank", "trackio_space_id", "project", "save_steps",
    "corpus", "vectors",
}  # fmt: skip


def deciding_settings(
    args: transformers.TrainingArguments, model_args: ModelConfig, base: Path, records: Iterable[Record]
) -> dict[str, Any]:
    """All that decides the weights of a run: what ``run.json`` holds.

    Args:
        args: Its settings, as they were given.
        model_args: Those of its model.
        base: The folder of the model that it starts with.
        records: What it trains on, in order.
    """
    adapters = {name: value for name, value in dataclasses.asdict(model_args).items() if name != "model_name_or_path"}
    # Settings that came later count only where they are used, so that earlier runs go on.
    unused = {"given_reasoning", "given_length"} if not getattr(args, "given_reasoning", 0) else set()
    content = hashlib.sha256("\n".join(map(repr, records)).encode(errors="surrogatepass")).hexdigest()[:16]
    return {
        **{name: value for name, value in args.to_dict().items() if name not in FREE | unused},
        **adapters,
        "base": fingerprint(base),
        "training_records": content,
    }


def start_or_resume(
    trainer: transformers.Trainer,
    out: Path,
    settings: Mapping[str, Any],
    restore: Callable[[Path], None] | None = None,
) -> None:
    """Trains to the end, from the newest whole checkpoint in the run's folder where there is one.

    Call it when everything else fits: a refused command must leave nothing that its correction would have to agree
    with.

    Args:
        trainer: Ready to train.
        out: The run's folder.
        settings: See :func:`deciding_settings`.
        restore: Loads what the trainer does not know of from a checkpoint.

    Raises:
        ValueError: The folder holds a run with another base or other settings.
    """
    check_same_run(out, settings)
    checkpoint = last_checkpoint(out)
    if checkpoint is not None:
        logger.info("going on from %s", checkpoint)
        if restore is not None:
            restore(checkpoint)
    began = time.time()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    logger.info("trained in %.0f s", time.time() - began)


def fingerprint(folder: Path) -> str:
    """A hash of the weight files in a checkpoint folder, to tell one base from another."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()[:16]


def check_same_run(out: Path, settings: Mapping[str, Any]) -> None:
    """Writes what decides the weights to ``out/run.json``, or compares it with what stands there.

    Raises:
        ValueError: The folder holds a run with another base or other settings.
    """
    path = out / RUN_FILE
    now = json.loads(json.dumps(settings, default=str))
    if not path.exists():
        # Every process of the run writes it, so none may see half a file.
        write_json(path, now, sort_keys=True)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if changed := sorted(name for name in {*before, *now} if before.get(name) != now.get(name)):
        told = "; ".join(f"{name}: {before.get(name)!r} then, {now.get(name)!r} now" for name in changed)
        raise ValueError(
            f"{out} holds a run with other settings ({told}). Go on with the same settings, give another output_dir, "
            "or delete the folder."
        )


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turns the errors that torch and safetensors raise on a full disk into an OSError.

    Raises:
        OSError: One of them could not write.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
    except RuntimeError as error:
        # These are torch.save's words for it; all other errors pass through.
        if "StreamWriter" not in str(error) and "unexpected pos" not in str(error):
            raise
        raise OSError(str(error)) from error


def last_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint in a run's folder; what a kill left half-written is removed.

    The trainer writes the state file last, and older checkpoints are deleted only after it.
    """
    whole: list[tuple[int, Path]] = []
    for folder in out.glob("checkpoint-*"):
        try:
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            whole.append((int(state["global_step"]), folder))
        except (OSError, ValueError, KeyError):
            logger.warning("%s is not whole (the run was stopped while writing it); it is removed", folder)
            shutil.rmtree(folder, ignore_errors=True)
    return max(whole)[1] if whole else None
