"""What all training runs share: a folder that guards its settings, whole checkpoints, and dev scores to choose by."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel
from trl.models.utils import unwrap_model_for_generation

from searchr3_embed.conversation import Conversation
from training.data.beir import BeirData
from training.shared import dev_scores

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
STATE_FILE = "trainer_state.json"


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
    """Notes what decides the weights in ``out/run.json``, or compares it with what stands there.

    Raises:
        ValueError: The folder holds a run with another base or other settings.
    """
    path = out / RUN_FILE
    now = json.loads(json.dumps(settings, default=str))
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        # Every process of the run comes by here.
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(now, indent=2, sort_keys=True), encoding="utf-8")
        os.replace(partial, path)
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
    """What torch and safetensors make of a full disk becomes the OSError that it is.

    Raises:
        OSError: One of them could not write.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
    except RuntimeError as error:
        # As torch.save says it; other errors are none of ours.
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


def without_wrapper(model: Any) -> PreTrainedModel:
    """The language model itself, adapters in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class EmbedderRun:
    """Mixed into a trainer: it measures retrieval instead of a loss, and leaves no half-written checkpoint."""

    conversation: Conversation
    dev_sets: Sequence[BeirData]

    def evaluate(
        self: Any, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measures nDCG@10 on the dev sets, direct and reasoning; see :func:`training.shared.dev_scores.measure`."""
        self._memory_tracker.start()
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as bare, self.accelerator.autocast():
            bare.eval()
            measured = self.measure(without_wrapper(bare))
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
            self.log(dict(metrics))
            bare.train()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def measure(self, model: PreTrainedModel) -> Mapping[str, float]:
        """What ``evaluate`` logs."""
        return dev_scores.measure(model, self.conversation, self.dev_sets)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Left out of the checkpoints: the exported model gets a card of its own."""

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        try:
            with writing():
                self.save_beside(folder)
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            error.add_note(
                f"Checkpoint {folder} could not be written and was removed; the earlier ones are whole. Make room, "
                "then give the same command again to go on."
            )
            raise

    def save_beside(self, folder: Path) -> None:
        """Writes what else the run needs to go on, before the trainer's own files: its state file comes last."""
