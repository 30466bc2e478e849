"""What the tests of both stages need: settings of a short run, its result, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

import training
from tests import tiny

TRAINING = Path(training.__file__).parent
CONFIGS = TRAINING / "configs"
WORDS = sorted({word for text in tiny.CORPUS for word in text.split() if word.isalpha()})


def sentence(start: int, length: int) -> str:
    return " ".join(WORDS[(start * 7 + i * 5) % len(WORDS)] for i in range(length))


def records(count: int, source: str) -> list[dict[str, Any]]:
    return [
        {
            "query": f"{source} {sentence(i, 4)} {i}",
            "positives": [f"{source} {sentence(i, 9 + i % 5)} {i}"],
            "negatives": [sentence(i + 50, 8)] if i % 3 == 0 else [],
            **({} if i % 4 == 0 else {"reasoning": sentence(i, 2) if i % 4 == 1 else ""}),
        }
        for i in range(count)
    ]


def write_sources(folder: Path, count: int) -> Path:
    for source in ("alpha", "beta"):
        lines = "".join(json.dumps(row) + "\n" for row in records(count, source))
        (folder / f"{source}.jsonl").write_text(lines)
    return folder


def common_settings(model: Path, data: Path, out: Path) -> dict[str, Any]:
    return {
        "model_name_or_path": str(model),
        "data": str(data),
        "output_dir": str(out),
        "sources": {"alpha": 1, "beta": 1},
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
        "held_out_one_in": 4,
        "export_dtype": "float32",
        "disable_tqdm": True,
    }


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(one: Path, other: Path, tolerance: float = 0.0) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=tolerance, msg=name)


def kill_at(checkpoint: Path, module: str, config: Path, seconds: float) -> None:
    """Starts a run and kills it as soon as a checkpoint is whole."""
    command = [sys.executable, "-m", module, "--config", str(config)]
    process = subprocess.Popen(command, cwd=TRAINING.parent, env=dict(os.environ), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + seconds
    while not (checkpoint / "trainer_state.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def run_in_two_processes(module: str, config: Path, seconds: float) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", module, "--config", str(config)]
    result = subprocess.run(command, cwd=TRAINING.parent, capture_output=True, text=True, timeout=seconds)
    assert result.returncode == 0, result.stderr[-3000:]
