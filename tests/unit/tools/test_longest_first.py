"""The order in which files of tests begin."""

from __future__ import annotations

from tests.conftest import LONGEST_FIRST, TESTS


def test_files_that_begin_first_are_there() -> None:
    """A file that was renamed would silently begin last again."""
    assert [name for name in LONGEST_FIRST if not (TESTS / name).is_file()] == []
