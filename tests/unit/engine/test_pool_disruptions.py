"""Somebody else takes a pod away that serves: an event on it says who, once; what we ask for ourselves is told as ours alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.reported_site import ReportedSite, settled_reported_site


@pytest.fixture
def site() -> Iterator[ReportedSite]:
    """Return a reported site where two pods serve and have for their dwell."""
    made = settled_reported_site()
    made.cluster.deploy("web", 2)
    assert made.run(200, lambda: made.cluster.ready_count("web") == 2 and made.is_quiet()), made.explain()
    made.run(15)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("PreemptionByScheduler", "a pod of higher priority"),
        ("EvictionByEvictionAPI", "somebody else evicted it"),
        ("DeletionByTaintManager", "a taint that it does not tolerate"),
        ("TerminationByKubelet", "kubelet ends it"),
        ("SomethingNew", "somebody else takes it away"),
    ],
)
def test_who_takes_a_serving_pod_away_is_told_once(site: ReportedSite, reason: str, words: str) -> None:
    """A warning on the pod, in words, with Kubernetes' own reason; also by a controller that comes up meanwhile, as the same event."""
    chosen = site.cluster.pods_of("web")[0]
    site.cluster.slow_to_end_s[chosen.name] = 20.0
    site.cluster.running[chosen.ref].grace_s = 10.0
    site.cluster.delete_by_hand(chosen.ref, disruption=reason)
    site.cluster.running[chosen.ref].grace_s = 10.0
    site.run(5)
    site.restart_controller()
    site.run(60)
    (story,) = site.stories("Disrupted")
    assert story.about == chosen.ref and story.is_warning
    assert words in story.text and f"({reason})" in story.text
    assert f"leaves node {chosen.node}" in story.text
    assert not site.stories("Evicted")
    assert site.cluster.ready_count("web") == 2
    site.assert_right()


def test_what_we_evict_is_told_as_ours(site: ReportedSite) -> None:
    """Inference pays no more: two evictions of ours, and nobody else is named, although Kubernetes has one word for both."""
    site.market.inference = 0.0
    assert site.run(100, lambda: site.tenants() == {"miner": 8, "llm": 0} and site.is_quiet()), site.explain()
    assert len(site.stories("Evicted")) == 2
    assert not site.stories("Disrupted")


def test_a_deletion_without_a_reason_and_a_miner_that_is_pushed_out_are_no_disruptions_of_customers(
    site: ReportedSite,
) -> None:
    """An owner scales down; a stranger takes a miner's place: neither is told as one."""
    site.cluster.deploy("web", 1)
    site.cluster.deploy("wild", 1, is_gated=False, namespace="strangers")
    site.run(60)
    assert site.cluster.preempted
    assert not site.stories("Disrupted")
