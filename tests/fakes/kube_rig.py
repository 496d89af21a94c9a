"""A fake API server with a connection to it, and short ways to make what tests need."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from swingbus_controller.adapters.kubernetes.access import load_in_cluster
from swingbus_controller.adapters.kubernetes.connection import ApiConnection, ConnectionSettings
from tests.fakes.api_server.server import TOKEN, FakeApiServer

GATE = "swingbus.io/power"


def in_cluster_files(folder: Path, server: FakeApiServer, token: str = TOKEN) -> dict[str, str]:
    """Write a service account's files; returns the environment that a pod has."""
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(token + "\n")
    (folder / "ca.crt").write_bytes(server.ca_path.read_bytes())
    host, _, port = server.url.removeprefix("https://").partition(":")
    return {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}


@asynccontextmanager
async def connected(server: FakeApiServer, settings: ConnectionSettings | None = None) -> AsyncIterator[ApiConnection]:
    """Connect as a pod does."""
    folder = server.folder / "account"
    environ = in_cluster_files(folder, server)
    async with ApiConnection(load_in_cluster(environ, folder), settings) as api:
        yield api


def pod_body(
    name: str, *, gates: tuple[str, ...] = (), labels: dict[str, str] | None = None, **spec: Any
) -> dict[str, Any]:
    """Return a pod that both API servers take."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {
            "containers": [{"name": "main", "image": "example.invalid/none:1"}],
            **({"schedulingGates": [{"name": gate} for gate in gates]} if gates else {}),
            **spec,
        },
    }


def event_body(namespace: str, name: str) -> dict[str, Any]:
    """Return an event about a pod that nobody knows, which both API servers take."""
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "example.com/test",
        "reportingInstance": "test-0",
        "action": "Try",
        "reason": "Tried",
        "type": "Normal",
        "regarding": {"kind": "Pod", "namespace": namespace, "name": "none"},
    }
