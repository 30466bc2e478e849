"""What sentence-transformers holds of a causal language model: its backbone as a module, the whole model beside it."""

from __future__ import annotations

import copy
import logging
from typing import Any, cast

from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class CausalTransformer(Transformer):
    """The stock Transformer module over the backbone of a causal language model that is already loaded.

    The whole language model is kept beside it as ``causal_lm``, so that moving, saving and copying take the head
    along.

    Args:
        model: The language model with its head.
        folder: Where it was loaded from; the stock class reads its own settings there.
        tokenizer: Turns a text into what the backbone reads for it, template included.
    """

    def __init__(self, model: PreTrainedModel, folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
        # A list, because a Module can't hold another one before it is initialised.
        self._loaded = [model]
        # Text only: with a chat template at hand the stock module would offer conversations too, in its own words.
        text = {"method": "forward", "method_output_name": "last_hidden_state"}
        super().__init__(
            folder,
            modality_config={"text": text},
            module_output_name="token_embeddings",
            processor_kwargs={"trust_remote_code": False},
        )
        self.causal_lm = self._loaded.pop()
        self.processor = tokenizer

    def _load_config(self, *args: Any, **kwargs: Any) -> tuple[PretrainedConfig, bool]:
        return self._loaded[0].config, False

    def _load_model(self, *args: Any, **kwargs: Any) -> PreTrainedModel:
        return cast(PreTrainedModel, self._loaded[0].base_model)

    @staticmethod
    def _configure_use_cache(*args: Any, **kwargs: Any) -> None:
        """Leaves the configuration alone: generation with the saved folder needs its cache."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the backbone in place: it is what is called, and never this module."""
        self.causal_lm.base_model.compile(*args, **kwargs)

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Writes the whole language model, head included, and the tokenizer that knows the direct turn."""
        _without_adapters(self.causal_lm).save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        self.save_config(output_path)


def _without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """A model whose folder loads by itself: a copy with its adapters merged, or itself if it has none.

    The names of wrapped layers are of no use without PEFT, which would leave their weights random.
    """
    # Told by what they do: PEFT need not be installed where nobody uses it.
    parts = model.named_modules()
    names = [name for name, part in parts if hasattr(part, "get_base_layer") and hasattr(part, "merge")]
    if not names:
        return model
    logger.warning("The adapters are merged into the weights that are saved; the model in memory keeps them apart.")
    merged = copy.deepcopy(model)
    for name in names:
        layer: Any = merged.get_submodule(name)
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(merged.get_submodule(parent), own, layer.get_base_layer())
    for part in (merged, merged.base_model):
        vars(part)["_hf_peft_config_loaded"] = False
    merged.tie_weights()
    return merged
