"""The manifest of the training data names all that a configuration trains on, with its licence and its weight."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

TRAINING = Path(__file__).parents[2] / "training"


def test_every_source_of_every_configuration_is_listed() -> None:
    text = (TRAINING / "DATA.md").read_text(encoding="utf-8")
    rows = {cells[0]: cells for line in text.splitlines() if len(cells := re.split(r" *\| *", line.strip("| "))) >= 5}
    used: dict[str, float] = {}
    for path in (TRAINING / "configs").glob("*.yaml"):
        sources = yaml.safe_load(path.read_text(encoding="utf-8")).get("sources") or {}
        # Those on the hub are downloaded under the terms of their own cards.
        named = {name for name in sources if not name.startswith("hub:")}
        assert named <= set(rows), path.name
        if path.name == "mini.yaml":
            used = sources
    assert len(used) > 20
    for name, weight in used.items():
        assert float(rows[name][2]) == weight, name
    for name in used:
        assert re.search(r"CC|MIT|Apache|C-UDA|CDLA|BSD|repository", rows[name][5]), name
