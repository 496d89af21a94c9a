"""The manual's table of what breaks a naive gate names tests: each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
HEADING = "## What breaks a naive gate, and the test that shows it does not"


def test_every_test_that_the_trap_table_names_exists() -> None:
    """By the beginning of its name, in whichever module of tests/cluster; a row without any would be a promise without a proof."""
    manual = (REPOSITORY / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    table = manual.split(HEADING, 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"`(test_[a-z0-9_]+)…?`", table))
    modules = sorted((REPOSITORY / "tests" / "cluster").rglob("test_*.py"))
    defined = {name for path in modules for name in re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8"))}
    assert len(named) >= 20
    assert not {name for name in named if not any(each.startswith(name) for each in defined)}
