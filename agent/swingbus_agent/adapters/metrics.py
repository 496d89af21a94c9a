"""The Prometheus endpoint: what the agent knows now, read at the scrape.

Decides names and labels. Invariant: a reading that is absent has no sample; nothing is kept here between scrapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swingbus.faults import Unreachable

if TYPE_CHECKING:
    from prometheus_client.core import Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """One sample: a name, what it means, labels and the value; `is_counter` where it only grows."""

    name: str
    meaning: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()
    is_counter: bool = False


def serve_metrics(host: str, port: int, snapshot: Callable[[], Iterable[Gauge]]) -> Callable[[], None]:
    """Serve `/metrics` in a thread; return what stops it. Raises Unreachable where the port is taken."""
    # Imported here: an agent without the endpoint does not pay for it.
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector

    class Snapshot(Collector):
        """Turns the agent's own list into families at each scrape."""

        def collect(self) -> Iterator[Metric]:
            families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
            for each in snapshot():
                family = families.get(each.name)
                if family is None:
                    kind = CounterMetricFamily if each.is_counter else GaugeMetricFamily
                    family = families[each.name] = kind(
                        each.name, each.meaning, labels=[name for name, _ in each.labels]
                    )
                family.add_metric([value for _, value in each.labels], each.value)
            yield from families.values()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot())
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise Unreachable(
            f"metrics cannot be served on {host}:{port}: {error}; change `metrics.port` or set it to 0",
            reason="METRICS_PORT",
        ) from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)

    return stop
