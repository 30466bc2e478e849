"""The steps of the policy with every environment beside it, and the state that a killed run goes on from."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.rl_environment.policy import Policy, Rollouts
from benchmarks.rl_environment.setting import Setting
from searchr3_embed.files import write_json
from training.data.lines import DataError
from training.data.records import Record
from training.rl.corpus.environment import Environment, EnvironmentSettings, Outcome
from training.rl.reward import RewardSettings, rewards

if TYPE_CHECKING:
    from searchr3_embed import ReasoningEmbedder

logger = logging.getLogger(__name__)


def measure(
    embedder: ReasoningEmbedder,
    setting: Setting,
    corpus: tuple[list[str], list[Record], dict[str, int]],
    out: Path,
    save_every: int,
) -> dict[str, Any]:
    """Runs the trajectory, every environment beside it; goes on from what ``out`` holds.

    Returns:
        ``{"log": {environment: [one row per step]}, "full": [one row per full encoding], "seconds_per_token"}``.
    """
    documents, records, number = corpus
    policy = Policy(embedder, setting, documents)
    result, environments = _begin(policy, setting, documents, records, out)
    first = result["done"] + 1
    for step in tqdm(range(first, setting.steps + 1), desc="Policy steps", unit="step", file=sys.stderr):
        rollouts = policy.roll_out(records[step * setting.queries : (step + 1) * setting.queries])
        positives = [[number[text] for text in r.positives] for r in rollouts.records for _ in range(setting.group)]
        true = None
        if step % setting.full_every == 0 or step == setting.steps:
            true, cost = _true_rewards(policy, rollouts, positives, documents)
            result["full"].append({"step": step, **cost})
        for name, environment in environments.items():
            policy.asked = 0
            outcome = environment.step(rollouts.embeddings, positives, policy.encode, step)
            row = {key: value for key, value in asdict(outcome).items() if isinstance(value, int | float)}
            row |= {"step": step, "tokens": policy.asked}
            if true is not None:
                row |= {"rewards": _rewards(outcome, rollouts).tolist(), "true": true.tolist()}
            result["log"][name].append(row)
        policy.learn(rollouts)
        result |= {"done": step, "seconds_per_token": policy.seconds / policy.tokens}
        if step % save_every == 0 or step == setting.steps:
            save_state(out, asdict(setting), policy, environments, result)
    return result


def _begin(
    policy: Policy, setting: Setting, documents: list[str], records: Sequence[Record], out: Path
) -> tuple[dict[str, Any], dict[str, Environment]]:
    """The result so far and the environments: those of the last state, or new ones after a first step."""
    settings = {name: EnvironmentSettings(**fields) for name, fields in setting.environments.items()}
    folder = last_state(out, asdict(setting))
    if folder is None:
        environments = {
            name: Environment.build(documents, policy.encode, one, progress=not i)
            for i, (name, one) in enumerate(settings.items())
        }
        policy.learn(policy.roll_out(records[: setting.queries]))
        return {"log": {name: [] for name in settings}, "full": [], "done": 0}, environments
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    saved = torch.load(folder / "policy.pt", weights_only=True)
    policy.model.load_state_dict(saved["model"])
    policy.optimizer.load_state_dict(saved["optimizer"])
    policy.generator.set_state(saved["generator"])
    policy.seconds, policy.tokens = saved["cost"]
    logger.info("going on after step %d", result["done"])
    return result, {name: Environment.load(folder / name, documents, one) for name, one in settings.items()}


def _true_rewards(
    policy: Policy, rollouts: Rollouts, positives: list[list[int]], documents: list[str]
) -> tuple[np.ndarray, dict[str, float]]:
    """The rewards in a freshly encoded corpus, and what encoding it has cost."""
    full = EnvironmentSettings(refresh="all", neighbours=0)
    began, tokens = policy.seconds, policy.tokens
    reference = Environment.build(documents, policy.encode, full, progress=False)
    true = _rewards(reference.step(rollouts.embeddings, positives, policy.encode, 0), rollouts)
    return true, {"seconds": policy.seconds - began, "tokens": policy.tokens - tokens}


def _rewards(outcome: Outcome, rollouts: Rollouts) -> np.ndarray:
    """Rewards, NaN for rollouts that failed."""
    finished = [generation.finished for generation in rollouts.generations]
    lengths = [len(generation.ids) for generation in rollouts.generations]
    return np.where(finished, rewards(outcome, finished, lengths, RewardSettings()), np.nan)


def save_state(
    out: Path,
    setting: Mapping[str, Any],
    policy: Policy,
    environments: Mapping[str, Environment],
    result: Mapping[str, Any],
) -> None:
    """Writes all that a killed run needs to go on; the folder takes its name when it is whole."""
    partial, folder = out / "state.part", out / f"state-{result['done']}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, environment in environments.items():
        environment.save(partial / name)
    torch.save(
        {
            "model": policy.model.state_dict(),
            "optimizer": policy.optimizer.state_dict(),
            "generator": policy.generator.get_state(),
            "cost": (policy.seconds, policy.tokens),
        },
        partial / "policy.pt",
    )
    write_json(partial / "result.json", result, indent=None)
    write_json(partial / "setting.json", setting)
    partial.rename(folder)
    for old in _states(out):
        if old != folder:
            shutil.rmtree(old)


def last_state(out: Path, setting: Mapping[str, Any]) -> Path | None:
    """The state to go on from.

    Raises:
        DataError: It belongs to other settings.
    """
    states = _states(out)
    if not states:
        return None
    saved = json.loads((states[-1] / "setting.json").read_text(encoding="utf-8"))
    if other := [name for name in setting if saved.get(name) != setting[name]]:
        raise DataError(
            f"{out} holds a run with {other[0]} = {saved.get(other[0])!r}, not {setting[other[0]]!r}; "
            "go on with the same settings, or name another folder"
        )
    return states[-1]


def _states(out: Path) -> list[Path]:
    folders = [path for path in out.glob("state-*") if path.name[6:].isdigit()]
    return sorted(folders, key=lambda path: int(path.name[6:]))
