"""What the trainers of both stages do alike: measure retrieval, not a loss, and save whole checkpoints or none."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from trl.models.utils import unwrap_model_for_generation

from searchr3_embed.conversation import Conversation
from training.data.beir import BeirData
from training.shared import dev_scores
from training.shared.resume import writing


def without_wrapper(model: Any) -> PreTrainedModel:
    """The language model itself, adapters in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class EmbedderTrainer:
    """Mixed into a trainer of TRL's.

    Attributes:
        conversation: The words around the texts.
        dev_sets: Sets to choose checkpoints by.
    """

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

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Not estimated: most of the work of a step is on texts that are not among its inputs."""
        return 0

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
