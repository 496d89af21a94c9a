"""One site for all of these tests, brought up once; each test finds it with nobody but miners, and is judged when it ends."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from swingbus_sim.cluster.tools import CONTROL
from swingbus_sim.cluster.up import bring_up, take_down
from swingbus_sim.kwok_site.measures import total
from tests.benchmarks.kube.ours import MINERS
from tests.benchmarks.kube.resting import USER
from tests.benchmarks.kube.witness import now_s
from tests.cluster.conftest import _build_or_skip, _own_place
from tests.cluster.traps.site import MAY_DRAW_W, TrapSite, standing


def pytest_configure(config: pytest.Config) -> None:
    """Name our markers."""
    config.addinivalue_line("markers", "preempts: somebody else takes a miner's place by the scheduler here")
    config.addinivalue_line("markers", "shares: somebody goes around the gate here, onto a GPU that is not free")


@pytest.fixture(scope="session")
def shared_site(say: Callable[[str], None]) -> Iterator[TrapSite]:
    """Return the site when all of its mining nodes mine."""
    with _own_place("tests-traps", say) as place, tempfile.TemporaryDirectory(prefix="traps-") as folder:
        _build_or_skip("a real control plane", place, (CONTROL,), say)
        try:
            with standing(bring_up(place, audited_users=(USER,), say=say), Path(folder)) as site:
                yield site
        finally:
            take_down(place, say=say)


@pytest.fixture
def site(shared_site: TrapSite, request: pytest.FixtureRequest) -> Iterator[TrapSite]:
    """Return the site for one test; afterwards nothing of it is left, and what must always hold has held."""
    site = shared_site
    site.began_s = now_s()
    before = {seen.uid for seen in site.witness.pods(MINERS) if seen.reason}
    yield site
    site.clear()
    site.nodes.must_run()
    samples = site.nodes.samples(site.began_s)
    totals = total(samples, MAY_DRAW_W)
    assert totals.over_limit_ws == 0.0, f"peak {totals.peak_w:.0f} W of {MAY_DRAW_W:.0f} W"
    if request.node.get_closest_marker("shares") is None:
        assert not any(sample.shared for sample in samples), "two pods worked on one GPU"
    if request.node.get_closest_marker("preempts") is None:
        fresh = [(s.name, s.reason) for s in site.witness.pods(MINERS) if s.reason and s.uid not in before]
        assert not fresh, f"the scheduler took miners' places: {fresh}"
    assert site.controller.is_running, site.controller.tail()
