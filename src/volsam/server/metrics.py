"""What an operator watches, in the words of Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from volsam.server.core import Core

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server; it has a registry of its own, so that several may live in a process."""

    def __init__(self, core: Core) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "volsam_requests", "Requests answered.", ("route", "method", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "volsam_step_seconds",
            "Seconds of the steps of actions.",
            ("step",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._ended = Counter("volsam_leases_expired", "Leases that ended by a timeout.", registry=self._registry)
        self._registry.register(_Levels(core))

    def request(self, route: str, method: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(route, method, str(status)).inc()

    def steps(self, seconds: Mapping[str, float]) -> None:
        """An action was done."""
        for step, value in seconds.items():
            self._seconds.labels(step).observe(max(0.0, value))

    def expired(self, count: int) -> None:
        """Leases were ended by the clock."""
        self._ended.inc(count)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Levels(Collector):
    def __init__(self, core: Core) -> None:
        self._core = core

    def collect(self) -> Iterator[Metric]:
        leases = list(self._core.leases)
        yield GaugeMetricFamily("volsam_leases", "Leases claimed now.", len(leases))
        yield GaugeMetricFamily("volsam_leases_max", "Leases that there may be.", self._core.leases.most)
        opened = sum(lease.conversation is not None for lease in leases)
        yield GaugeMetricFamily("volsam_sessions_open", "Sessions open now.", opened)
        yield GaugeMetricFamily("volsam_encodings_bytes", "Encoded regions kept now.", self._core.encodings.size)
        yield GaugeMetricFamily("volsam_device_waiting", "Steps that wait for the device.", self._core.device.waiting)
