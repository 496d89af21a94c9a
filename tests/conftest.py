"""What every test needs set up once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

# Files that take minutes, the longest first: begun last, one of them would keep a single worker busy while the others are done. By
# itself xdist begins with the files that have the most tests, which are the quick ones (`--no-loadscope-reorder` in the Makefile).
LONGEST_FIRST = (
    "cluster/traps/test_unreachable.py",  # and with it all traps
    "cluster/kills/test_kills_on_nodes.py",
    "cluster/test_chart_on_nodes.py",
    "cluster/test_pods_site.py",
    "cluster/test_install_page.py",
    "cluster/test_chart_life.py",
    "cluster/test_images_on_nodes.py",
    "cluster/test_nothing_is_left.py",
    "cluster/test_images.py",
    "integration/test_deb.py",
    "integration/kill_matrix/test_kill_matrix.py",
    "integration/test_kwok_site_agents.py",
    "e2e/test_judge_can_fail.py",
)
TESTS = Path(__file__).parent
# One worker has all that is here: their site stands until its worker ends, and takes a good part of a core meanwhile.
TOGETHER = ("tests/cluster/traps/",)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the whole kill matrix be asked for."""
    parser.addoption(
        "--full-matrix",
        action="store_true",
        help="run every phase with every fault of tests/integration/kill_matrix and tests/cluster/kills (about 20 minutes each), "
        "not the reduced matrices",
    )


class _ByFile(LoadFileScheduling):  # type: ignore[misc]  # its class is untyped
    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return next((folder for folder in TOGETHER if nodeid.startswith(folder)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give whole files to workers, and whole folders where their tests share what is dear."""
    return _ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_configure(config: pytest.Config) -> None:
    """Say that there is no event loop yet.

    Else Python 3.11 makes one as soon as the asyncio plugin asks for the current loop; nobody closes it, and its warning fails
    whichever test runs when it is collected.
    """
    asyncio.set_event_loop(None)
    config.addinivalue_line("markers", "full_matrix: runs only with --full-matrix")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest, and leave out what only the whole matrix holds."""
    place = {TESTS / name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    if config.getoption("--full-matrix"):
        return
    left_out = [item for item in items if item.get_closest_marker("full_matrix")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full_matrix")]


@pytest.fixture(autouse=True)
def _logging_as_at_the_start() -> Iterator[None]:
    """Undo what a program's own start configured: levels and processors of one test are not another's."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
