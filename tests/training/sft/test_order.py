"""Which reasoning targets are taught."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from searchr3_embed import ReasoningEmbedder
from training.data.records import Record
from training.sft.order import targets_to_teach


@pytest.mark.parametrize("teach_empty", [True, False])
def test_long_targets_are_left_out_and_empty_ones_on_request(mini_checkpoint: Path, teach_empty: bool) -> None:
    conversation = ReasoningEmbedder(mini_checkpoint, device="cpu").conversation
    records = [
        Record(f"q{number}", (f"d{number}",), (), "s", reasoning)
        for number, reasoning in enumerate(["a river", "", None, "river " * 50])
    ]
    args: Any = SimpleNamespace(teach_empty=teach_empty)
    found = targets_to_teach(records, conversation, args)
    assert [record.query for record in found] == ["q0", "q1", "q2", "q3"]
    assert [record.reasoning for record in found] == ["a river", "" if teach_empty else None, None, None]
