"""Memory for keys and values between calls: reused, never shared, never harmful."""

from __future__ import annotations

import gc
import mmap
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from searchr3_embed import ReasoningEmbedder
from searchr3_embed.engine import kv_memory
from searchr3_embed.engine.kv_memory import CacheMemory

LIKE = torch.zeros(0)


def kept(*shapes: tuple[int, ...], fill: float = 1.0) -> tuple[nn.Module, list[torch.Tensor]]:
    """A model that was given memory of these shapes and gave it back, and that memory."""
    model = nn.Linear(1, 1)
    memory = CacheMemory.take(model)
    tensors = [memory.room(shape, LIKE).fill_(fill) for shape in shapes]
    memory.give_back(model)
    return model, tensors


def test_the_next_call_gets_what_the_last_one_used() -> None:
    model, tensors = kept((2, 3, 4), (2, 3, 4))
    memory = CacheMemory.take(model)
    again = [memory.room(shape, LIKE) for shape in ((3, 1), (2, 12))]
    assert [one.data_ptr() for one in again] == [one.data_ptr() for one in tensors]
    assert [one.shape for one in again] == [(3, 1), (2, 12)]


def test_calls_that_overlap_share_nothing() -> None:
    model, (first,) = kept((8,))
    one, other = CacheMemory.take(model), CacheMemory.take(model)
    assert one.room((8,), LIKE).data_ptr() == first.data_ptr() != other.room((8,), LIKE).data_ptr()


def test_of_calls_that_overlap_the_largest_leaves_its_memory() -> None:
    model = nn.Linear(1, 1)
    memories = [CacheMemory.take(model) for _ in range(3)]
    tensors = [memory.room((size,), LIKE) for memory, size in zip(memories, (8, 64, 16), strict=True)]
    for memory in memories:
        memory.give_back(model)
    assert CacheMemory.take(model).room((8,), LIKE).data_ptr() == tensors[1].data_ptr()


@pytest.mark.parametrize("like", [torch.zeros(0, dtype=torch.bfloat16), torch.zeros(0, device="meta")])
def test_other_dtypes_and_devices_get_memory_of_their_own(like: torch.Tensor) -> None:
    model, _ = kept((8,))
    room = CacheMemory.take(model).room((8,), like)
    assert (room.dtype, room.device) == (like.dtype, like.device)


def test_what_is_too_small_is_replaced() -> None:
    model, _ = kept((8,))
    assert torch.equal(CacheMemory.take(model).room((3, 3), LIKE), torch.zeros(3, 3))


def test_a_call_in_inference_mode_leaves_memory_that_any_call_can_write() -> None:
    model = nn.Linear(1, 1)
    with torch.inference_mode():
        memory = CacheMemory.take(model)
        first = memory.room((8,), torch.zeros(0)).fill_(1)
        memory.give_back(model)
    with torch.no_grad():
        again = CacheMemory.take(model).room((8,), LIKE)
        assert again.data_ptr() == first.data_ptr()
        again[2:4] = 5
    with torch.inference_mode():
        again[2:4] = 6
    assert again.tolist() == [1, 1, 6, 6, 1, 1, 1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_not_kept(bad: float) -> None:
    model, _ = kept((4,), fill=bad)
    assert torch.equal(CacheMemory.take(model).room((4,), LIKE), torch.zeros(4))


def test_more_than_the_limit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_memory, "_MOST_BYTES_KEPT", 8 * 4)
    for size, value in ((8, 1.0), (9, 0.0)):
        model, _ = kept((size,))
        assert CacheMemory.take(model).room((size,), LIKE)[0] == value


def test_memory_goes_with_the_model() -> None:
    model, tensors = kept((8,))
    assert model in kv_memory._kept
    gone = weakref.ref(tensors.pop())
    del model, tensors
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="nothing here tells what a process holds")
def test_only_what_is_written_to_is_held() -> None:
    def held() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE

    size = 1 << 26
    before = held()
    room = CacheMemory.take(nn.Linear(1, 1)).room((size,), torch.zeros(0, dtype=torch.bfloat16))
    assert not bool(room.any())
    assert held() - before < size / 4
    room[: size // 2] = 1
    assert held() - before >= 0.9 * size


@pytest.mark.parametrize("work", ["reason", "encode_document"])
def test_what_is_not_kept_is_freed_at_once(mini_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    monkeypatch.setattr(kv_memory, "_MOST_BYTES_KEPT", 0)
    made: list[weakref.ref[torch.Tensor]] = []
    zeros = kv_memory._zeros

    def note(size: int, like: torch.Tensor) -> torch.Tensor:
        made.append(weakref.ref(buffer := zeros(size, like)))
        return buffer

    monkeypatch.setattr(kv_memory, "_zeros", note)
    mini = ReasoningEmbedder(mini_checkpoint, device="cpu", on_truncate="ignore")
    gc.disable()
    try:
        getattr(mini, work)(["a long beginning that both have, " * 3 + end for end in ("and one end", "and another")])
        assert made and not any(one() is not None for one in made)
    finally:
        gc.enable()


def test_embeddings_do_not_depend_on_the_calls_before(mini_checkpoint: Path) -> None:
    mini = ReasoningEmbedder(mini_checkpoint, device="cpu", on_truncate="ignore")
    texts = ["how is mold removed from walls", "parse a date in python", "is gold a good investment for the young"]
    alone = [mini.encode_query(text) for text in texts]
    mini.encode_query([text * 8 for text in texts], batch_size=2)
    found: dict[int, list[np.ndarray]] = {}

    def work(name: int) -> None:
        found[name] = [mini.encode_query(text) for text in texts]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows in found.values():
        np.testing.assert_allclose(rows, alone, atol=1e-5)
