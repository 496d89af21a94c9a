"""Many pods at once, let in by waves: the watts that the later ones, or their full speed, wait for are not lent to miners meanwhile."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

import tests.fakes.cluster
from tests.fakes.pod_site import PodSite, make_pod_site
from tests.fakes.site_files import SITE

MakeSite = Callable[..., PodSite]


@pytest.fixture
def slow_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models load for a minute, and give flips the time for it."""
    monkeypatch.setattr(tests.fakes.cluster, "READY_S", 60.0)
    patient = re.sub(r"^(starting_s|verifying_s|settling_s) = .*$", r"\1 = 300.0", SITE, flags=re.MULTILINE)
    monkeypatch.setattr("tests.fakes.pod_site.SITE", patient)


def woken_in(site: PodSite, seconds: int, until: Callable[[], bool]) -> set[str]:
    """Run until something is so; return the flips that woke resting machines to mine."""
    found: set[str] = set()
    for _ in range(seconds):
        site.run(1)
        for bank in site.state.holdings:
            flips = site.state.open_flips(bank)
            found |= {f.id for f in flips if (f.source.name, f.destination.name) == ("standby", "mine")}
        if until():
            return found
    raise AssertionError(site.explain())


def at_full(site: PodSite) -> int:
    """Return how many GPUs serve at their highest point, as recorded."""
    return sum(holdings.count_at("serve") for holdings in site.state.holdings.values())


@pytest.mark.parametrize("limit_w", [66_000.0, 70_000.0])
def test_no_miner_is_woken_while_a_host_waits_to_grow(pod_site: MakeSite, limit_w: float) -> None:
    """16 flips may be open: 48 pods come in waves, and between two of them each host waits until its meter has proven the last one."""
    site = pod_site(make_pod_site(limit_w=limit_w, asics=20, gpus=24))
    site.cluster.deploy("jobs", 48)
    assert not woken_in(site, 120, lambda: at_full(site) == 48)
    assert site.tenants() == {"miner": 0, "llm": 48}
    site.assert_right()


@pytest.mark.usefixtures("slow_models")
def test_no_miner_is_woken_while_models_load_that_came_in_low(pod_site: MakeSite) -> None:
    """What was made for their full speed is there long before they can use it."""
    site = pod_site(make_pod_site(limit_w=37_500.0, asics=1, gpus=24))
    site.cluster.deploy("jobs", 12)
    assert not woken_in(site, 240, lambda: at_full(site) == 12)
    site.assert_right()
