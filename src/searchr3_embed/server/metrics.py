"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Of one app. Each has its own registry, so that several apps fit into one process.

    Args:
        waiting: Calls that wait now, by kind.
    """

    def __init__(self, waiting: Callable[[str], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "searchr3_requests", "Requests answered.", ["path", "kind", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "searchr3_request_seconds",
            "Time to the end of a reply.",
            ["path", "kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "searchr3_batch_texts", "Texts computed at once.", ["kind"], buckets=_TEXTS, registry=self.registry
        )
        self.computing = Histogram(
            "searchr3_batch_seconds", "Time to compute a batch.", ["kind"], buckets=_SECONDS, registry=self.registry
        )
        self.tokens = Counter(
            "searchr3_tokens", "Tokens read by the encoder or written by a thinker.", ["kind"], registry=self.registry
        )
        self.cut = Counter("searchr3_truncated_texts", "Texts longer than the encoder reads.", registry=self.registry)
        queue = Gauge(
            "searchr3_waiting_calls", "Calls that wait or are being computed.", ["kind"], registry=self.registry
        )
        for kind in ("query", "document"):
            queue.labels(kind).set_function(lambda kind=kind: waiting(kind))  # type: ignore[misc]

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
