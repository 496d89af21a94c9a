"""The order in which files of tests begin, and who stays together."""

from __future__ import annotations

from tests.conftest import LONGEST_FIRST, TESTS, TOGETHER


def test_files_that_begin_first_are_there() -> None:
    """A file that was renamed would silently begin last again."""
    assert [name for name in LONGEST_FIRST if not (TESTS / name).is_file()] == []


def test_folders_that_stay_together_are_there() -> None:
    """Of one that was renamed each worker would bring a site up again."""
    assert [folder for folder in TOGETHER if not (TESTS.parent / folder).is_dir() or not folder.endswith("/")] == []
