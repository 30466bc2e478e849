"""Where the time of a call goes: matrix products against everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

_MATRIX = ("addmm", "::mm", "bmm", "linear", "mkldnn", "scaled_dot_product", "flash_attention")
_PYTHON = "Python and dispatch"


def profile_call(call: Callable[[], Any], rows: int = 12) -> dict[str, Any]:
    """Profiles one call after one that warms up.

    The profiler's own cost falls on what is not a matrix product, so the true share of those is a little higher.

    Args:
        call: What to profile; the operations of the calling thread count.
        rows: Length of the table.

    Returns:
        ``matrix_share`` of the time, and ``table``: the operations that take longest, each with its share and calls.
    """
    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function(_PYTHON):
        call()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    matrix = sum(event.self_cpu_time_total for event in events if is_matrix_product(event.key))
    table = [
        {"operation": event.key, "share": event.self_cpu_time_total / total, "calls": event.count}
        for event in events[:rows]
    ]
    return {"matrix_share": matrix / total, "table": table}


def is_matrix_product(operation: str) -> bool:
    """Whether an operation of torch multiplies matrices."""
    return any(part in operation for part in _MATRIX)
