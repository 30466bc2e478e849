"""The paired randomisation test."""

from __future__ import annotations

from searchr3_embed.adapt.significance import paired_test


def test_paired_test() -> None:
    assert paired_test([(0.5, 0.5)] * 9) == {"difference": 0.0, "p_value": 1.0}
    better = [(0.6 + i / 100, 0.5) for i in range(20)]
    assert paired_test(better)["p_value"] < 0.001
    assert paired_test(better) == paired_test(better)
    mixed = [(0.5 + (-1) ** i / 10, 0.5) for i in range(20)]
    assert paired_test(mixed)["p_value"] > 0.5
