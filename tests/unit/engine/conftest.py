"""Sites whose GPU hosts are nodes of a cluster, closed after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fakes.pod_site import PodSite, settled_pod_site
from tests.fakes.reported_site import ReportedSite, settled_reported_site


@pytest.fixture
def pod_site() -> Iterator[Callable[..., PodSite]]:
    """Return what makes a site at rest: every GPU mines."""
    made: list[PodSite] = []

    def make(*args: Any, **options: Any) -> PodSite:
        made.append(settled_pod_site(*args, **options))
        return made[-1]

    yield make
    for site in made:
        site.close()


@pytest.fixture
def settled() -> Iterator[Callable[..., ReportedSite]]:
    """Return what makes sites that tell their cluster how they are and have come to rest."""
    made: list[ReportedSite] = []

    def make(**options: Any) -> ReportedSite:
        made.append(settled_reported_site(**options))
        return made[-1]

    yield make
    for site in made:
        site.close()
