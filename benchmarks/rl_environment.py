"""How true are the environment's rewards, and at what cost? A real policy takes real steps.

    python -m benchmarks.rl_environment --data DATA/eval/medquad-heldout --train-records DATA/train/medquad.jsonl.gz \\
        --model searchr3 --steps 100 --budgets 64 256 --out results

The policy is trained by policy gradient: it samples reasonings for training queries whose answers are in the corpus,
and AdamW raises the probability of those that bring the query nearer to its own answer than to those of the other
queries in the batch. That reward is computed without an environment, so that all environments, one for each refresh
policy and budget, see the very same steps. At every ``--full-every``-th step the whole corpus is encoded, once for all
of them, and their rewards are compared with the true ones: Pearson correlation, and how often the sign of the
group-relative advantage agrees. Rollouts that failed, whose reward is the same everywhere, are left out.

The test queries of the evaluation set are never used: training records that hold one, or nearly, are dropped. A killed
run goes on with the same command. Documents are encoded once per step and shared; the encoding time of an environment
is what its documents would have cost alone, by the tokens in them and the measured time of a token.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from searchr3_embed.engine import decode, forward
from training.data.beir import DataError, read_beir
from training.data.records import Record, load
from training.evaluate.report import environment as machine
from training.evaluate.report import write_whole
from training.rl.corpus.choose_documents import POLICIES
from training.rl.corpus.environment import Environment, EnvironmentSettings, Outcome
from training.rl.reward import RewardSettings, rewards

if TYPE_CHECKING:
    from searchr3_embed import ReasoningEmbedder

logger = logging.getLogger("benchmarks.rl_environment")

GOAL = {"pearson": 0.99, "signs": 0.98}
# Advantages nearer to zero than this are rounding: equal reasonings in a group.
_ZERO = 1e-6
# Rows in one forward pass with gradient.
_ROWS = 16
QUERY_TOKENS = 64


@dataclass(frozen=True)
class Setting:
    """What decides the run; a run goes on only with the same."""

    data: str
    records: str
    model: str
    steps: int
    documents: int | None
    document_tokens: int
    full_every: int
    queries: int
    group: int
    learning_rate: float
    beta: float
    temperature: float
    seed: int
    environments: dict[str, dict[str, Any]]


def draw(
    data: Path, records: Path, documents: int | None, queries: int, seed: int
) -> tuple[list[str], list[Record], dict[str, int]]:
    """A corpus and training queries that it answers.

    Returns:
        The documents, ``queries`` records (again from the start when there are fewer), and text -> document number.

    Raises:
        DataError: No record's positives are all in the corpus, or ``documents`` cannot hold the positives.
    """
    corpus = list(dict.fromkeys(read_beir(data).documents.values()))
    known = set(corpus)
    found = load({str(records): 1.0}, None, exclude=[data]).sources[str(records)]
    usable = [record for record in found if known.issuperset(record.positives)]
    if not usable:
        raise DataError(f"{records}: no record whose positives are all in {data}")
    rng = random.Random(seed)
    rng.shuffle(usable)
    chosen = [usable[i % len(usable)] for i in range(queries)]
    if documents is not None and documents < len(corpus):
        needed = list(dict.fromkeys(text for record in chosen for text in record.positives))
        if documents < len(needed):
            raise DataError(f"--documents {documents}: the {len(chosen)} queries have {len(needed)} positives")
        kept = {*needed, *rng.sample([text for text in corpus if text not in set(needed)], documents - len(needed))}
        corpus = [text for text in corpus if text in kept]
    return corpus, chosen, {text: i for i, text in enumerate(corpus)}


class Policy:
    """The model in training, and what it encodes at the present step."""

    def __init__(self, embedder: ReasoningEmbedder, setting: Setting, documents: list[str]) -> None:
        self.model, self.talk, self.setting = embedder.causal_lm.eval(), embedder.conversation, setting
        self.turns = dict(zip(documents, self._turns(documents, setting.document_tokens), strict=True))
        # No weight decay, and no dropout: all that moves the documents is the gradient.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=setting.learning_rate, weight_decay=0.0)
        # Without it the policy soon writes one thing only, and then no reward teaches or tells anything.
        self.start = copy.deepcopy(self.model).requires_grad_(False) if setting.beta > 0 else None
        self.generator = torch.Generator(self.model.device).manual_seed(setting.seed)
        self.known: dict[str, np.ndarray] = {}
        self.seconds, self.tokens, self.asked = 0.0, 0, 0

    def _turns(self, texts: Sequence[str], length: int) -> list[list[int]]:
        return self.talk.direct_turns([body[:length] for body in self.talk.text_ids(texts)])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows of documents; what was encoded since the last update is only looked up."""
        self.asked += sum(len(self.turns[text]) for text in texts)
        missing = [text for text in dict.fromkeys(texts) if text not in self.known]
        if missing:
            began = time.perf_counter()
            states = forward.embed(self.model, [self.turns[text] for text in missing])
            self.known.update(zip(missing, F.normalize(states, dim=-1).cpu().numpy(), strict=True))
            self.seconds += time.perf_counter() - began
            self.tokens += sum(len(self.turns[text]) for text in missing)
        return np.stack([self.known[text] for text in texts])

    def roll_out(self, records: Sequence[Record]) -> Rollouts:
        """Samples a group of reasonings for each query."""
        bodies = [body[:QUERY_TOKENS] for body in self.talk.text_ids([record.query for record in records])]
        prompts = [turn for turn in self.talk.reasoning_turns(bodies) for _ in range(self.setting.group)]
        generations = decode.think(
            self.model,
            prompts,
            embed_token_id=self.talk.embed_token_id,
            max_new_tokens=self.talk.default_max_reasoning_tokens,
            distinct=self.talk.prompts.distinct_tokens,
            temperature=self.setting.temperature,
            generator=self.generator,
        )
        states = torch.stack([generation.state for generation in generations])
        return Rollouts(list(records), prompts, generations, F.normalize(states, dim=-1).cpu().numpy())

    def learn(self, rollouts: Rollouts) -> None:
        """One step of policy gradient."""
        answers = self.encode([record.positives[0] for record in rollouts.records])
        own = np.repeat(np.arange(len(answers)), self.setting.group)
        scores = rollouts.embeddings @ answers.T
        right = scores[np.arange(len(own)), own].copy()
        scores[np.arange(len(own)), own] = -np.inf
        worth = (right - (scores.max(axis=1) if len(answers) > 1 else 0.0)).reshape(-1, self.setting.group)
        advantage = (worth - worth.mean(1, keepdims=True)) / (worth.std(1, keepdims=True) + 1e-4)
        ends = [[*generation.ids, self.talk.embed_token_id] for generation in rollouts.generations]
        tokens = sum(map(len, ends))
        self.optimizer.zero_grad()
        for start in range(0, len(ends), _ROWS):
            rows = range(start, min(start + _ROWS, len(ends)))
            kept, before = max(len(ends[i]) for i in rows), max(len(rollouts.prompts[i]) for i in rows)
            ids = torch.zeros(len(rows), before + kept, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, i in enumerate(rows):
                line = slice(before - len(rollouts.prompts[i]), before + len(ends[i]))
                ids[place, line], mask[place, line] = torch.tensor(rollouts.prompts[i] + ends[i]), 1
            ids, mask = ids.to(self.model.device), mask.to(self.model.device)
            odds = self._log_probabilities(self.model, ids, mask, kept)
            weight = torch.tensor(advantage.reshape(-1)[rows], dtype=odds.dtype, device=odds.device)
            terms = -weight[:, None] * odds
            if self.start is not None:
                with torch.no_grad():
                    apart = self._log_probabilities(self.start, ids, mask, kept)
                # The estimator of TRL (Schulman 2020, http://joschu.net/blog/kl-approx.html).
                terms = terms + self.setting.beta * ((apart - odds).exp() - (apart - odds) - 1)
            ((terms * mask[:, -kept:]).sum() / tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.known.clear()

    def _log_probabilities(self, model: Any, ids: Tensor, mask: Tensor, kept: int) -> Tensor:
        """Of the last ``kept`` tokens, shape (rows, kept)."""
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),  # left padding, absolute positions
            use_cache=False,
            logits_to_keep=kept + 1,
        )
        # Tokens that inference bars stay in the denominator: a small bias, and no matter for drift.
        logits = output.logits[:, -kept - 1 : -1].float() / self.setting.temperature
        return logits.log_softmax(dim=-1).gather(2, ids[:, -kept:, None]).squeeze(2)


@dataclass(frozen=True)
class Rollouts:
    """Reasonings, a group for each record in order; embeddings of shape (records x group, d)."""

    records: list[Record]
    prompts: list[list[int]]
    generations: list[decode.Generation]
    embeddings: np.ndarray


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
    settings = {name: EnvironmentSettings(**fields) for name, fields in setting.environments.items()}
    result: dict[str, Any] = {"log": {name: [] for name in settings}, "full": [], "done": 0}
    folder = last_state(out, asdict(setting))
    if folder is not None:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        saved = torch.load(folder / "policy.pt", weights_only=True)
        policy.model.load_state_dict(saved["model"])
        policy.optimizer.load_state_dict(saved["optimizer"])
        policy.generator.set_state(saved["generator"])
        policy.seconds, policy.tokens = saved["cost"]
        environments = {name: Environment.load(folder / name, documents, one) for name, one in settings.items()}
        logger.info("going on after step %d", result["done"])
    else:
        environments = {
            name: Environment.build(documents, policy.encode, one, progress=not i)
            for i, (name, one) in enumerate(settings.items())
        }
        policy.learn(policy.roll_out(records[: setting.queries]))
    first = result["done"] + 1
    for step in tqdm(range(first, setting.steps + 1), desc="Policy steps", unit="step", file=sys.stderr):
        rollouts = policy.roll_out(records[step * setting.queries : (step + 1) * setting.queries])
        positives = [[number[text] for text in r.positives] for r in rollouts.records for _ in range(setting.group)]
        true = None
        if step % setting.full_every == 0 or step == setting.steps:
            full = EnvironmentSettings(refresh="all", neighbours=0)
            began, tokens = policy.seconds, policy.tokens
            reference = Environment.build(documents, policy.encode, full, progress=False)
            true = _rewards(reference.step(rollouts.embeddings, positives, policy.encode, 0), rollouts)
            result["full"].append({"step": step, "seconds": policy.seconds - began, "tokens": policy.tokens - tokens})
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
    write_whole(partial / "result.json", json.dumps(result))
    write_whole(partial / "setting.json", json.dumps(setting))
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
        "machine": machine(),
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


def render(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    setting, env = summary["setting"], summary["machine"]
    lines = [
        f"Model {setting['model']}, {summary['documents']} documents of {Path(setting['data']).name} (on average "
        f"{summary['tokens_per_document']:.0f} tokens), {setting['steps']} policy steps with AdamW at learning rate "
        f"{setting['learning_rate']:g} and KL weight {setting['beta']:g}, {setting['queries']} queries x "
        f"{setting['group']} rollouts; compared with a full encoding at every step divisible by "
        f"{setting['full_every']}. {env['cpu']}, {env['torch_threads']} threads; a full encoding takes "
        f"{summary['seconds_full']:.1f} s.",
        "",
        "| environment | Pearson | sign of advantage | groups that vary | RMSE | documents a step | share | mean age "
        "| encoding, s | times less | search, s | graph, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in summary["environments"]:
        less = "" if row["times_less_encoding"] is None else f"{row['times_less_encoding']:.1f}"
        lines.append(
            f"| {row['name']} | {row['pearson']:.4f} | {100 * row['signs']:.2f} % | "
            f"{100 * row['varied']:.0f} % | {row['rmse']:.5f} | "
            f"{row['refreshed']:.0f} | {100 * row['share_refreshed']:.2f} % | {row['staleness']:.1f} | "
            f"{row['seconds_encoding']:.2f} | {less} | {row['seconds_search']:.3f} | {row['seconds_graph']:.3f} |"
        )
    name = summary["cheapest_that_meets_the_goal"]
    goal = f"Pearson >= {GOAL['pearson']} and sign agreement >= {100 * GOAL['signs']:.0f} %"
    lines += ["", f"Cheapest with {goal}: {name}." if name else f"None has {goal}.", ""]
    lines += [
        f"On paper, from these costs, for larger corpora ({summary['rollouts_per_step']} rollouts, same machine):",
        "",
        "| documents | full encoding, s | encoding, s | search, s | graph, s | times less | memory, GiB |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in summary["projection"]:
        lines.append(
            f"| {row['documents']:.0e} | {row['seconds_full']:.3g} | {row['seconds_encoding']:.2f} | "
            f"{row['seconds_search']:.3g} | {row['seconds_graph']:.2f} | {row['times_less']:.0f} | "
            f"{row['memory_gib']:.3g} |"
        )
    return "\n".join(lines) + "\n"


def plot(summary: Mapping[str, Any], path: Path) -> None:
    """Left: agreement against documents encoded per step. Right: agreement over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    rows = summary["environments"]
    for refresh in dict.fromkeys((row["refresh"], row["correct_drift"]) for row in rows):
        points = sorted(
            (row["refreshed"], row["signs"]) for row in rows if (row["refresh"], row["correct_drift"]) == refresh
        )
        label = refresh[0] + ("" if refresh[1] else ", uncorrected")
        left.plot(*zip(*points, strict=True), marker="o", label=label)
    for row in rows:
        right.plot([r["step"] for r in row["by_step"]], [r["signs"] for r in row["by_step"]], label=row["name"])
    for axes, title in ((left, "documents encoded per step"), (right, "policy step")):
        axes.axhline(GOAL["signs"], color="grey", linewidth=0.8, linestyle="--")
        axes.set_xlabel(title)
        axes.set_ylabel("advantages with the right sign")
        axes.legend(frameon=False, fontsize=7)
    figure.savefig(path)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rl_environment", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="BEIR-layout folder: its corpus, never its queries")
    parser.add_argument("--train-records", type=Path, required=True, help="JSONL(.gz) of queries with positives in it")
    parser.add_argument("--model", default="searchr3", help="alias, folder or hub id (default: searchr3)")
    parser.add_argument("--steps", type=int, default=100, help="policy steps (default: 100)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 256], help="default: 64 256")
    parser.add_argument("--refresh", nargs="+", choices=sorted(POLICIES), default=["impact", "neighbourhood", "none"],
                        help="refresh policies (default: impact neighbourhood none)")  # fmt: skip
    parser.add_argument("--max-age", type=int, default=0, help="age in steps that counts as fresh (default: 0)")
    parser.add_argument("--uncorrected", action="store_true", help="measure all without drift correction as well")
    parser.add_argument("--documents", type=int, help="a part of the corpus that holds the positives (default: all)")
    parser.add_argument("--document-tokens", type=int, default=200, help="most tokens of a document (default: 200)")
    parser.add_argument("--full-every", type=int, default=10, help="steps between full encodings (default: 10)")
    parser.add_argument("--queries", type=int, default=8, help="queries a step (default: 8)")
    parser.add_argument("--group", type=int, default=8, help="rollouts a query (default: 8)")
    parser.add_argument("--learning-rate", type=float, default=2e-5, help="default: 2e-5")
    parser.add_argument("--beta", type=float, default=0.02, help="weight of the KL to the start (default: 0.02)")
    parser.add_argument("--temperature", type=float, default=1.0, help="default: 1.0")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--save-every", type=int, default=10, help="steps between states to go on from (default: 10)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    parser.add_argument("--out", type=Path, required=True, help="folder for environment.json, .md and .png")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 2 for bad input."""
    parser = arguments()
    args = parser.parse_args(argv)
    for name in ("steps", "document_tokens", "full_every", "queries", "save_every"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.group < 2:
        parser.error(f"--group must be at least 2, or there is nothing to compare with, got {args.group}")
    if args.beta < 0:
        parser.error(f"--beta must be at least 0, got {args.beta}")
    if min(*args.budgets, args.max_age) < 0:
        parser.error(f"--budgets and --max-age must be at least 0, got {args.budgets} and {args.max_age}")
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)

    from searchr3_embed import ReasoningEmbedder
    from searchr3_embed.checkpoint import CheckpointError

    environments: dict[str, dict[str, Any]] = {}
    for corrected in (True, False) if args.uncorrected else (True,):
        for refresh in args.refresh:
            fixed = refresh in ("none", "all")
            for budget in (0,) if fixed else args.budgets:
                name = refresh + ("" if fixed else f"-{budget}") + ("" if corrected or fixed else "-uncorrected")
                fields = {"refresh": refresh, "budget": budget, "max_age": args.max_age, "correct_drift": corrected}
                environments.setdefault(name, fields)
    setting = Setting(
        data=str(args.data), records=str(args.train_records), model=args.model, steps=args.steps,
        documents=args.documents, document_tokens=args.document_tokens, full_every=args.full_every,
        queries=args.queries, group=args.group, learning_rate=args.learning_rate, beta=args.beta,
        temperature=args.temperature, seed=args.seed, environments=environments,
    )  # fmt: skip
    try:
        corpus = draw(args.data, args.train_records, args.documents, (args.steps + 1) * args.queries, args.seed)
        embedder = ReasoningEmbedder(args.model, device=args.device, on_truncate="ignore")
        result = measure(embedder, setting, corpus, args.out, args.save_every)
    except (DataError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    summary = summarise(setting, result, len(corpus[0]), embedder.causal_lm.config.hidden_size)
    write_whole(args.out / "environment.json", json.dumps(summary, indent=2) + "\n")
    write_whole(args.out / "environment.md", render(summary))
    plot(summary, args.out / "rl_environment.png")
    print(render(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
