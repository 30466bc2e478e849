"""What is killed: how it is started, when its work has begun, and what must be the same in the end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file

_TOLERANCE = 1e-5
_ROUNDS = 25


@dataclasses.dataclass(frozen=True)
class Victim:
    """A command that is killed.

    Attributes:
        name: For the report.
        prepare: Fills the empty folder of a try.
        command: What is run there. Its standard output goes to ``output`` in the folder.
        begun: Whether its work has begun: what comes before is imports and loading.
        wrong: What differs between the folder of the uninterrupted run and that of a try, empty if nothing does.
        torn: What is wrong right after the kill, empty if nothing is.
    """

    name: str
    prepare: Callable[[Path], object]
    command: Callable[[Path], list[str]]
    begun: Callable[[Path], bool]
    wrong: Callable[[Path, Path], str]
    torn: Callable[[Path], str] = lambda folder: ""


def victims(scratch: Path, names: list[str]) -> list[Victim]:
    """The victims of some names, their models and texts written below ``scratch``."""
    from tests import tiny_encoders

    # The folder's name is the encoder's, and a thinker goes back to the encoder that it was made for.
    encoder = tiny_encoders.save_bert(scratch / "small-encoder", hidden=32)
    start = tiny_encoders.save_with_thinker(scratch / "start", encoder, ends=9.0)
    makers: dict[str, Callable[[], Victim]] = {
        "sft": lambda: _training(scratch, "training.sft", _sft_settings(encoder)),
        "rl": lambda: _training(scratch, "training.rl", _rl_settings(start)),
        "search": lambda: _search(scratch, start),
        "save": lambda: _save(start, tiny_encoders.save_with_thinker(scratch / "another", encoder, ends=1.0, seed=2)),
    }
    return [makers[name]() for name in names]


NAMES = ("sft", "rl", "search", "save")

# ------------------------------------------------------------------------------------------------- training


def _common(model: Path) -> dict[str, object]:
    return {
        "encoder": str(model), "sources": {"alpha": 1, "beta": 1}, "max_steps": 12, "save_steps": 2,
        "per_device_train_batch_size": 8, "learning_rate": 1e-3, "query_length": 40, "stay_weight": 1.0,
        "use_peft": True, "lora_r": 4, "lora_alpha": 8, "use_cpu": True, "bf16": False,
        "gradient_checkpointing": False, "logging_steps": 1, "report_to": "none", "held_out_one_in": 4,
        "export_dtype": "float32", "disable_tqdm": True,
    }  # fmt: skip


def _sft_settings(encoder: Path) -> dict[str, object]:
    return _common(encoder)


def _rl_settings(start: Path) -> dict[str, object]:
    return _common(start) | {
        "num_generations": 4, "max_completion_length": 9, "temperature": 0.9, "beta": 0.02, "contrast_weight": 1.0,
        "weight_decay": 0.0, "per_device_train_batch_size": 16, "projection_learning_rate": 1e-2,
    }  # fmt: skip


def _training(scratch: Path, module: str, settings: dict[str, object]) -> Victim:
    data = scratch / "records"
    data.mkdir(exist_ok=True)
    for source in ("alpha", "beta"):
        lines = [json.dumps(_record(source, number)) + "\n" for number in range(24)]
        (data / f"{source}.jsonl").write_text("".join(lines), encoding="utf-8")

    def prepare(folder: Path) -> None:
        values = settings | {"data": str(data), "output_dir": str(folder / "run")}
        (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    return Victim(
        module,
        prepare,
        lambda folder: [sys.executable, "-m", module, "--config", str(folder / "config.yaml")],
        lambda folder: (folder / "run").is_dir(),
        _other_weights,
    )


def _record(source: str, number: int) -> dict[str, object]:
    return {
        "query": f"{source} {_sentence(number, 4)} {number}",
        "positives": [f"{source} {_sentence(number, 9 + number % 5)} {number}"],
        "negatives": [_sentence(number + 50, 8)] if number % 3 == 0 else [],
        **({"reasoning": _sentence(number, 2)} if number % 2 else {}),
    }


def _sentence(start: int, length: int) -> str:
    words = "river glacier bank heart question answer vector text species rates csv column cold adults stones".split()
    return " ".join(words[(start * 7 + place * 4) % len(words)] for place in range(length))


def _other_weights(whole: Path, tried: Path) -> str:
    """Names tensors of the exported model that are not the same to the bit."""
    expected, found = _tensors(whole / "run"), _tensors(tried / "run")
    if not expected:
        return "the uninterrupted run exported no weights"
    differing = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    return f"{len(differing)} of {len(expected)} tensors differ, {differing[0]} among them" if differing else ""


def _tensors(run: Path) -> dict[str, str]:
    """Hashes of the exported tensors by file and name."""
    return {
        f"{path.relative_to(run)}:{name}": hashlib.sha256(value.tobytes()).hexdigest()
        for path in sorted(run.rglob("*.safetensors"))
        if not any(part.startswith("checkpoint-") for part in path.relative_to(run).parts)
        for name, value in load_file(path).items()
    }


# --------------------------------------------------------------------------------------------------- search


def _search(scratch: Path, model: Path) -> Victim:
    corpus = scratch / "corpus.jsonl"
    # So many that encoding takes seconds, in which the cache is written several times.
    lines = (json.dumps({"text": f"{_sentence(number, 30)} {number}"}) + "\n" for number in range(20_000))
    corpus.write_text("".join(lines), encoding="utf-8")

    def command(folder: Path) -> list[str]:
        options = [
            "--model",
            str(model),
            "--device",
            "cpu",
            "--cache-folder",
            str(folder / "cache"),
            "--json",
            "-k",
            "10",
        ]
        return [sys.executable, "-m", "searchr3_embed", "search", *options, str(corpus), "glacier river", "bank rates"]

    return Victim(
        "searchr3 search", lambda folder: None, command, lambda folder: (folder / "cache").is_dir(), _other_vectors
    )


def _other_vectors(whole: Path, tried: Path) -> str:
    """Says which hits or which vectors of the cache are not the same."""
    answers = [
        [json.loads(line) for line in (folder / "output").read_text(encoding="utf-8").splitlines()]
        for folder in (whole, tried)
    ]
    hits = [[(hit["id"], hit["score"]) for answer in part for hit in answer["hits"]] for part in answers]
    if not hits[0] or len(hits[0]) != len(hits[1]):
        return f"{len(hits[1])} hits instead of {len(hits[0])}"
    for (name, score), (other, found) in zip(*hits, strict=True):
        # Equal scores may change places.
        if abs(score - found) > _TOLERANCE + 1e-6 or (name != other and abs(score - found) > _TOLERANCE):
            return f"hit {other} with {found} instead of {name} with {score}"
    (expected,), (found_vectors,) = (
        [_cache(path) for path in (folder / "cache").glob("*.npz")] for folder in (whole, tried)
    )
    if expected.keys() != found_vectors.keys():
        return "the cache holds other texts"
    worst = max(float(np.abs(vector - found_vectors[key]).max()) for key, vector in expected.items())
    return f"a vector of the cache is wrong by {worst:.3g}" if worst > _TOLERANCE else ""


def _cache(path: Path) -> dict[bytes, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {key.tobytes(): vector for key, vector in zip(arrays["keys"], arrays["vectors"], strict=True)}


# --------------------------------------------------------------------------------------------------- saving


def _save(first: Path, second: Path) -> Victim:
    return Victim(
        "save_pretrained",
        lambda folder: None,
        lambda folder: [
            *(sys.executable, "-m", "benchmarks.kill.save_again"),
            *(str(first), str(second), str(folder / "model"), str(_ROUNDS)),
        ],
        lambda folder: (folder / "begun").exists(),
        _not_the_last,
        _mixed,
    )


def _not_the_last(whole: Path, tried: Path) -> str:
    last = _files(whole / "second")
    return (
        "" if last and _files(whole / "model") == _files(tried / "model") == last else "it is not what was saved last"
    )


def _mixed(folder: Path) -> str:
    """Says which files of a folder are whose if it is neither the one nor the other, file for file."""
    found, first, second = (_files(folder / name) for name in ("model", "first", "second"))
    if not found or found in (first, second):
        return ""
    parts = [
        f"{name} is {'the first one' if value == first.get(name) else 'the second one'}"
        for name, value in found.items()
        if first.get(name) != second.get(name)
    ]
    missing = [f"{name} is missing" for name in sorted(second.keys() - found.keys())]
    return "neither the old folder nor the new one: " + ", ".join([*parts, *missing])


def _files(folder: Path) -> dict[str, str]:
    """Hashes of a folder's files by their path; what is unfinished is left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.endswith(".unfinished") for part in path.relative_to(folder).parts)
    }
