"""The list-watch on a real API server, behind a proxy that does wrong what networks and proxies do wrong."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from swingbus.clock import SystemClock
from swingbus_controller.adapters.kubernetes.access import load_in_cluster
from swingbus_controller.adapters.kubernetes.answers import decode
from swingbus_controller.adapters.kubernetes.connection import ApiConnection, ConnectionSettings
from swingbus_controller.adapters.kubernetes.listwatch import ListWatch, ListWatchSettings, Page
from swingbus_controller.adapters.kubernetes.objects import Pod
from swingbus_controller.adapters.kubernetes.pod_writes import delete_pod
from swingbus_controller.adapters.kubernetes.resources import PODS, ApiCall
from swingbus_sim.cluster.up import Cluster
from tests.contract.test_kubernetes_api import Rig, on_cluster
from tests.fakes.api_server.certificates import write_certificates
from tests.fakes.api_server.faults import CutBody, Fault, Hang, Html, Meanwhile, Redirect, Refuse, Reply, WatchFault
from tests.fakes.api_server.proxy import FaultProxy
from tests.fakes.api_server.store import Refusal, expired
from tests.fakes.api_server.watching import line
from tests.fakes.kube_rig import GATE, Follower, versions

pytestmark = pytest.mark.cluster
SETTINGS = ListWatchSettings(page_objects=2, silence_s=1.0, pause_base_s=0.01, pause_longest_s=0.1)
NO_FAULT = Meanwhile(lambda: None)
_PAGE = msgspec.json.Decoder(Page[Pod])
LIST_FAULTS: dict[str, Fault] = {
    "410": Refuse(expired()),
    "500": Refuse(Refusal(500, "InternalError", "boom")),
    "429": Refuse(Refusal(429, "TooManyRequests", "busy", retry_after_s=0)),
    "html": Html(),
    "redirect": Redirect("https://127.0.0.1:1/"),
    "half_an_answer": CutBody(),
    "no_json": Reply(b"{"),
    "hang": Hang(),
}
WATCH_FAULTS: dict[str, Fault] = {
    "410_as_an_answer": Refuse(expired()),
    "410_as_an_event": WatchFault(raw=line("ERROR", expired().body)),
    "500": Refuse(Refusal(500, "InternalError", "boom")),
    "html": Html(),
    "redirect": Redirect("/elsewhere"),
    "hang": Hang(),
    "close": WatchFault(after_events=1),
    "half_a_line": WatchFault(after_events=1, raw=b'{"type":"ADDED","object":{"kind'),
    "garbage": WatchFault(after_events=1, raw=b"\x00\xff{]\n"),
    "reset": WatchFault(after_events=2, then="reset"),
    "silence": WatchFault(after_events=1, then="silence"),
    "a_line_without_end": WatchFault(raw=b"x" * (5 * 2**20), then="silence"),
}


class Site(Follower[Pod]):
    """The real server, the proxy, a list-watch through it and its consumer."""

    def __init__(self, rig: Rig, proxy: FaultProxy, watch: ListWatch[Pod]) -> None:
        super().__init__(watch)
        self.rig, self.proxy = rig, proxy

    async def make(self, *names: str) -> list[Pod]:
        return [await self.rig.make_pod(name, gates=(GATE,)) for name in names]

    async def drop(self, name: str) -> str:
        pod = await self.rig.pod(name)
        assert pod is not None
        await delete_pod(self.rig.writer, self.rig.life(pod), grace_s=0)
        return pod.uid

    async def until_equal(self) -> None:
        """Wait until copy and consumer know what the server says when asked directly."""
        call = ApiCall(verb="list", resource=PODS, namespace=self.rig.namespace)
        there = versions({pod.key: pod for pod in decode(await self.rig.api.call(call), _PAGE, call).items})
        await self.until_versions(lambda: there)


@pytest.fixture
async def site(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Site]:
    """Return five pods on the real server, and a list-watch that has not begun to run."""
    async with (
        on_cluster(cluster.kubeconfig) as rig,
        FaultProxy(tmp_path, write_certificates(tmp_path), cluster.kubeconfig) as proxy,
    ):
        (tmp_path / "token").write_text("none is asked for")
        host, _, port = proxy.url.removeprefix("https://").partition(":")
        access = load_in_cluster({"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}, tmp_path)
        async with ApiConnection(access, ConnectionSettings(call_timeout_s=1.0)) as api:
            watch = ListWatch(
                api,
                PODS,
                Pod,
                clock=SystemClock(),
                chance=random.Random(1),
                namespace=rig.namespace,
                settings=SETTINGS,
            )
            made = Site(rig, proxy, watch)
            await made.make("a", "b", "c", "d", "e")
            yield made


@pytest.mark.parametrize("page", [0, 1, 2])
@pytest.mark.parametrize("fault", LIST_FAULTS)
async def test_a_list_survives(site: Site, fault: str, page: int) -> None:
    """Whatever happens to whichever page, the copy becomes whole, and nothing is told as gone that is there."""
    site.proxy.faults.next("list", *[NO_FAULT] * page, LIST_FAULTS[fault])
    async with site.running():
        await site.watch.wait_synced()
        await site.until_equal()
        assert site.watch.counts.list_failures.total() == 1
        assert site.gone == []


@pytest.mark.parametrize("fault", WATCH_FAULTS)
async def test_a_watch_survives(site: Site, fault: str) -> None:
    """Pods come, go and come again under their names while the watch is wrong: the copy ends right and every end is told."""
    async with site.running():
        await site.watch.wait_synced()
        site.proxy.faults.next("watch", WATCH_FAULTS[fault])
        site.proxy.end_watches()
        ended = [await site.drop("a"), await site.drop("b")]
        await site.make("a", "f")
        ended.append(await site.drop("f"))
        await site.make("g")
        await site.until(lambda: not site.proxy.faults.coming["watch"])
        await site.until_equal()
        await site.until(lambda: set(ended[:2]) <= set(site.gone))
        assert set(site.gone) <= set(ended)
        assert len(site.gone) == len(set(site.gone))
