"""The order in which files of tests begin."""

from __future__ import annotations

from tests.conftest import _LONGEST_FIRST, _TESTS


def test_files_that_begin_first_are_there() -> None:
    """A file that was renamed would silently begin last again."""
    assert [name for name in _LONGEST_FIRST if not (_TESTS / name).is_file()] == []
