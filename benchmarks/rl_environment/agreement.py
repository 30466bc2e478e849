"""How near an environment's rewards are to the true ones, what they cost, and what that comes to elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.rl_environment.setting import Setting
from training.evaluate.machine import machine_description
from training.rl.corpus.environment import EnvironmentSettings

GOAL = {"pearson": 0.99, "signs": 0.98}
# Advantages nearer to zero than this are rounding: equal reasonings in a group.
_ZERO = 1e-6


def agreement(rows: Sequence[Mapping[str, Any]], group: int) -> dict[str, float]:
    """How near an environment's rewards are to the true ones.

    Args:
        rows: With ``rewards`` and ``true``, each a list over rollouts, groups in a row; NaN for failed ones.
        group: Rollouts of a query.

    Returns:
        ``pearson``; ``signs``, the share of rollouts whose advantage has the right sign, of the groups whose true
        rewards differ, for all others teach nothing and agree by themselves; ``varied``, the share of those groups;
        ``rmse``; ``rollouts``.
    """
    ours = np.array([row["rewards"] for row in rows], dtype=np.float64).reshape(-1, group)
    true = np.array([row["true"] for row in rows], dtype=np.float64).reshape(-1, group)
    good = np.isfinite(true)
    signs = []
    for values in (ours, true):
        means = np.where(good, values, 0.0).sum(1, keepdims=True) / np.maximum(good.sum(1, keepdims=True), 1)
        above = np.where(good, values, 0.0) - means
        signs.append(np.where(np.abs(above) < _ZERO, 0.0, np.sign(above)))
    teaching = (signs[1] != 0).any(axis=1)
    counted = good & teaching[:, None]
    a, b = ours[good], true[good]
    varied = len(a) > 1 and a.std() > 0 and b.std() > 0
    return {
        "pearson": float(np.corrcoef(a, b)[0, 1]) if varied else float("nan"),
        "signs": float((signs[0] == signs[1])[counted].mean()) if counted.any() else float("nan"),
        "varied": float(teaching.mean()),
        "rmse": float(np.sqrt(np.mean(np.square(a - b)))) if len(a) else float("nan"),
        "rollouts": len(a),
    }


def summarise(setting: Setting, result: Mapping[str, Any], documents: int, size: int) -> dict[str, Any]:
    """The figures of every environment, of the full encoding, and what they come to in larger corpora."""
    per_token = result["seconds_per_token"]
    full = per_token * float(np.mean([row["tokens"] for row in result["full"]]))
    table = []
    for name, rows in result["log"].items():
        compared = [row for row in rows if "true" in row]
        mean = {
            key: float(np.mean([row[key] for row in rows]))
            for key in ("refreshed", "share_refreshed", "staleness", "seconds_search", "seconds_graph")
        }
        encoding = per_token * float(np.mean([row["tokens"] for row in rows]))
        table.append(
            {
                "name": name,
                **setting.environments[name],
                **agreement(compared, setting.group),
                **mean,
                "seconds_encoding": encoding,
                "times_less_encoding": full / encoding if encoding else None,
                "by_step": [{"step": row["step"], **agreement([row], setting.group)} for row in compared],
            }
        )
    best = min(
        (row for row in table if row["pearson"] >= GOAL["pearson"] and row["signs"] >= GOAL["signs"]),
        key=lambda row: row["seconds_encoding"],
        default=None,
    )
    return {
        "setting": asdict(setting),
        "machine": machine_description(),
        "documents": documents,
        "rollouts_per_step": setting.queries * setting.group,
        "tokens_per_document": full / per_token / documents,
        "seconds_per_token": per_token,
        "seconds_full": full,
        "environments": table,
        "cheapest_that_meets_the_goal": best and best["name"],
        "projection": [project(best or table[-1], full, documents, size, n) for n in (10**6, 10**8)],
    }


def project(row: Mapping[str, Any], full: float, measured: int, size: int, documents: int) -> dict[str, Any]:
    """What a step costs in a corpus of another size, from the measured costs of one document.

    The budget stays as it is, for it depends on the rollouts; so does the repair of edges. Search grows with the
    corpus.
    """
    encoding, search = row["seconds_encoding"], row["seconds_search"] * documents / measured
    step = encoding + search + row["seconds_graph"]
    return {
        "documents": documents,
        "environment": row["name"],
        "seconds_full": full * documents / measured,
        "seconds_encoding": encoding,
        "seconds_search": search,
        "seconds_graph": row["seconds_graph"],
        "times_less": full * documents / measured / step,
        "memory_gib": 4 * documents * (size + EnvironmentSettings().neighbours + 2) / 2**30,
    }
