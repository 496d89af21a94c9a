"""A fake API server with a connection to it, who follows a list-watch, and short ways to make what tests need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from swingbus_controller.adapters.kubernetes.access import load_in_cluster
from swingbus_controller.adapters.kubernetes.connection import ApiConnection, ConnectionSettings
from swingbus_controller.adapters.kubernetes.listwatch import ListWatch
from swingbus_controller.adapters.kubernetes.objects import KubeObject
from swingbus_controller.domain.cluster.mirror import Change, Gone, Key, Seen
from tests.fakes.api_server.server import TOKEN, FakeApiServer

GATE = "swingbus.io/power"
T = TypeVar("T", bound=KubeObject)


class Follower(Generic[T]):
    """A consumer of a list-watch that believes only what it is told; `told` is that, in order. Closed, `gate` makes it a slow one."""

    deadline_s = 20.0

    def __init__(self, watch: ListWatch[T]) -> None:
        self.watch = watch
        self.told: list[Change[T]] = []
        self.known: dict[Key, T] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def follow(self) -> None:
        async for change in self.watch.changes():
            self.told.append(change)
            if isinstance(change, Seen):
                self.known[change.obj.key] = change.obj
            else:
                # A life that began and ended between two looks is told by its end alone.
                known = self.known.pop(change.obj.key, change.obj)
                assert known.uid == change.obj.uid, "the end of another life"
            await self.gate.wait()

    @property
    def gone(self) -> list[str]:
        """The uids that were told as gone, in order."""
        return [change.obj.uid for change in self.told if isinstance(change, Gone)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run list-watch and consumer."""
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(self.watch.run()), tasks.create_task(self.follow())]
            try:
                yield
            finally:
                for task in started:
                    task.cancel()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        async with asyncio.timeout(self.deadline_s):
            while not holds():
                await asyncio.sleep(0.005)

    async def until_versions(self, there: Callable[[], Mapping[Key, tuple[str, str]]]) -> None:
        """Wait until copy and consumer know these lives and revisions."""
        await self.until(lambda: versions(self.watch.snapshot()) == there())
        await self.until(lambda: versions(self.known) == there())


def versions(objects: Mapping[Key, T]) -> dict[Key, tuple[str, str]]:
    """Return uid and revision of each object."""
    return {key: (obj.uid, obj.revision) for key, obj in objects.items()}


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
