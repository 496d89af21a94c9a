"""Prometheus metrics of the controller, on an HTTP port of their own (loopback by default).

Decides names. Refuses to know: where numbers come from. Invariant: a gauge of something that is not known now is absent, never 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from swingbus.faults import Unreachable
from swingbus_controller.app.watching import FleetSnapshot
from swingbus_controller.domain.cluster.pool_words import PoolWords


class ControllerMetrics:
    """Counts for ingest and recorder, gauges from snapshots of the fleet."""

    def __init__(self, site: str) -> None:
        self.registry = CollectorRegistry()
        self._site = site

        def counter(name: str, text: str) -> Counter:
            return Counter(f"swingbus_controller_{name}", text, ["site"], registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"swingbus_{name}", text, ["site", *labels], registry=self.registry)

        self._batches = counter("batches", "Telemetry batches taken in.").labels(site)
        self._samples = counter("samples", "Device samples taken in (one device at one instant).").labels(site)
        self._fields = counter("field_samples", "Field samples taken in (one field of one device).").labels(site)
        self._rejected = counter("batches_rejected", "Batches refused for ever as malformed.").labels(site)
        self._commit_failures = counter("commit_failures", "Commits of telemetry that the disk refused.").labels(site)
        self._suppressed = counter("events_suppressed", "Events that were thinned out of the record.").labels(site)
        self._commit_s = Histogram(
            "swingbus_controller_commit_seconds",
            "Time of one durable commit of telemetry.",
            ["site"],
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5),
            registry=self.registry,
        ).labels(site)
        self._agents = gauge("agents", "Agents by state.", "state")
        self._revision = gauge("journal_revision", "Newest revision of the journal.").labels(site)
        self._epoch = gauge("controller_epoch", "Epoch that this controller holds.").labels(site)
        self._metered = gauge("feeder_metered_power_watts", "Newest live reading of a feeder's own meter.", "feeder")
        self._attributed = gauge("feeder_attributed_power_watts", "Sum of device readings below a feeder.", "feeder")
        self._unattributed = gauge(
            "feeder_unattributed_power_watts", "Metered less attributed, only with a live meter.", "feeder"
        )
        self._meter_state = gauge("feeder_meter_live", "Whether a feeder's meter is live (1) or not (0).", "feeder")
        self._unattributed_ratio = gauge("site_unattributed_ratio", "Share of metered power that no device explains.")
        self._own_end = gauge(
            "controller_certificate_expiry_timestamp_seconds", "When the certificate ends that the controller shows."
        ).labels(site)
        self._agents_end = gauge(
            "agents_certificate_expiry_timestamp_seconds",
            "When the first certificate ends of the agents that are heard.",
        )
        self._devices = gauge("bank_devices", "Devices of a bank by observed mode.", "agent", "bank", "mode")
        self._bank_power = gauge("bank_power_watts", "Sum of a bank's newest device readings.", "agent", "bank")
        self._waiting_pods = gauge("pool_waiting_pods", "Pods that wait behind the gate.", "pool")
        self._waiting_gpus = gauge("pool_waiting_gpus", "GPUs that pods behind the gate ask for.", "pool")
        self._oldest_s = gauge(
            "pool_oldest_waiting_seconds", "Age of the longest waiting pod; absent where none waits.", "pool"
        )
        self._pool_gpus = gauge("pool_gpus", "GPUs of a pool by what they do.", "pool", "does")
        self._flips = Counter(
            "swingbus_controller_tenant_flips",
            "Flips from one tenant to another that are over.",
            ["site", "pool", "path", "phase"],
            registry=self.registry,
        )
        self._evictions = Counter(
            "swingbus_controller_evictions",
            "Evictions asked for, by the API server's answer.",
            ["site", "answer"],
            registry=self.registry,
        )

    def batches_taken(self, batch_count: int, sample_count: int, field_count: int) -> None:
        """Count the batches of one commit."""
        self._batches.inc(batch_count)
        self._samples.inc(sample_count)
        self._fields.inc(field_count)

    def batch_rejected(self) -> None:
        """Count one refusal."""
        self._rejected.inc()

    def commit_done(self, batch_count: int, seconds: float) -> None:
        """Take the time of one commit."""
        self._commit_s.observe(seconds)

    def commit_failed(self) -> None:
        """Count one failed commit."""
        self._commit_failures.inc()

    def events_suppressed(self, count: int) -> None:
        """Count events that were thinned out."""
        self._suppressed.inc(count)

    def show(self, snapshot: FleetSnapshot) -> None:
        """Show one look at the fleet."""
        _replace(self._agents, {(self._site, state): count for state, count in snapshot.agents.items()})
        self._revision.set(snapshot.revision)
        self._epoch.set(snapshot.epoch)
        feeders = {(self._site, name): reading for name, reading in snapshot.feeders.items()}
        live = {key: reading for key, reading in feeders.items() if reading.meter_state == "live"}
        _replace(
            self._meter_state,
            {key: reading.meter_state == "live" for key, reading in feeders.items() if reading.meter_state != "none"},
        )
        _replace(self._metered, {key: reading.metered_w for key, reading in live.items()})
        _replace(self._attributed, {key: reading.attributed_w for key, reading in feeders.items()})
        _replace(self._unattributed, {key: reading.unattributed_w for key, reading in live.items()})
        _replace(self._agents_end, {(self._site,): snapshot.agents_certificate_expire_unix_s})
        _replace(self._unattributed_ratio, {(self._site,): snapshot.unattributed_ratio})
        _replace(self._bank_power, {(self._site, *key): bank.power_w for key, bank in snapshot.banks.items()})
        _replace(
            self._devices,
            {
                (self._site, *key, mode): count
                for key, bank in snapshot.banks.items()
                for mode, count in bank.modes.items()
            },
        )

    def show_certificate(self, end_unix_s: float) -> None:
        """Show when the certificate ends that the controller shows now."""
        self._own_end.set(end_unix_s)

    def show_pools(self, pools: Mapping[str, PoolWords], now_unix_s: float) -> None:
        """Show what is said of each pool; pools that are gone are shown no more."""
        _replace(self._waiting_pods, {(self._site, name): words.waiting_pods for name, words in pools.items()})
        _replace(self._waiting_gpus, {(self._site, name): words.waiting_gpus for name, words in pools.items()})
        _replace(
            self._oldest_s,
            {
                (self._site, name): max(0.0, now_unix_s - words.oldest_unix_s)
                for name, words in pools.items()
                if words.oldest_unix_s is not None
            },
        )
        _replace(
            self._pool_gpus,
            {
                (self._site, name, does): count
                for name, words in pools.items()
                for does, count in asdict(words.gpus).items()
                if does != "total"
            },
        )

    def flip_ended(self, pool: str, path: str, phase: str) -> None:
        """Count a flip that is over."""
        self._flips.labels(self._site, pool, path, phase).inc()

    def eviction_answered(self, answer: str) -> None:
        """Count an answer to an eviction."""
        self._evictions.labels(self._site, answer).inc()


def _replace(gauge: Gauge, values: Mapping[tuple[str, ...], float | None]) -> None:
    """Set what is known and remove the rest; a scrape in between sees no gap."""
    known = {labels: value for labels, value in values.items() if value is not None}
    for labels, value in known.items():
        gauge.labels(*labels).set(value)
    for family in gauge.collect():
        for sample in family.samples:
            labels = tuple(sample.labels[name] for name in gauge._labelnames)
            if labels not in known:
                gauge.remove(*labels)


def serve_metrics(registry: CollectorRegistry, address: str) -> tuple[int, Callable[[], None]]:
    """Serve a registry on `host:port` from a thread; return the port and a call that stops it."""
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), addr=host, registry=registry)
    except OSError as error:
        raise Unreachable(
            f'cannot serve metrics on {address}: {error.strerror or error}; choose another metrics_listen or "off".',
            reason="CANNOT_LISTEN",
            metadata={"address": address},
        ) from error

    def stop() -> None:
        _stop(server, thread)

    return int(server.server_port), stop


def _stop(server: WSGIServer, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join(timeout=5.0)
