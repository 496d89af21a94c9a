"""The chart's README: current, and made of comments that a reader of values.yaml would give to the same keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from swingbus.faults import InvalidInput
from tools import chart_readme
from tools.chart_readme import CHART, PATH, described, entries, main, readme

VALUES = """# The file's own heading.

first:
  # One line,
  # and another.
  a: 1
  # Holds kubelet.sock.
  #   - name: x
  #     config: y
  b: []

  # c: 2 is commented out, and belongs to nobody.

  # Of d.
  d: {e: 1, f: "2"}
    # - deeper: than d
  # Of g.
  g: |
    # not a comment
  h:
    # Of i.
    i:
      - {j: 1}
# Of all in second.
second:
  k: a | b
  l: ""
"""


def test_comments_are_joined_and_stay_with_their_keys() -> None:
    """Several lines become one; a heading and what is commented out below a key go to no key."""
    assert described(entries(VALUES)) == {
        "first.a": "One line, and another.",
        "first.b": "Holds kubelet.sock.",
        "first.d": "Of d.",
        "first.g": "Of g.",
        "first.h.i": "Of i.",
        "second.k": "Of all in second.",
        "second.l": "Of all in second.",
    }


def test_keys_are_dotted_with_their_line_and_default() -> None:
    """As the file has it: a map in braces is one default; lists and texts of several lines become JSON."""
    found = {entry.path: (entry.line, entry.default) for entry in entries(VALUES)}
    assert found == {
        "first": (3, None),
        "first.a": (6, "1"),
        "first.b": (10, "[]"),
        "first.d": (15, '{e: 1, f: "2"}'),
        "first.g": (18, '"# not a comment\\n"'),
        "first.h": (20, None),
        "first.h.i": (22, '[{"j": 1}]'),
        "second": (25, None),
        "second.k": (26, "a | b"),
        "second.l": (27, '""'),
    }


def test_indented_lines_of_a_comment_are_its_example() -> None:
    """It is shown as it is, below the table; the table's words don't have it."""
    page = readme(VALUES)
    assert "| `first.b` | `[]` | Holds kubelet.sock. |\n" in page
    assert "\n\nAn example of `first.b`:\n\n    - name: x\n      config: y\n" in page
    assert "| `second.k` | `a \\| b` | Of all in second. |" in page, "a bar would end the cell"


@pytest.mark.parametrize(
    ("values", "mute"),
    [
        ("a: 1\n", "a (line 1)"),
        ("# Of a.\na:\n  # Of b.\n  b: 1\n  c: 2\n", "a.c (line 5)"),
        ("# Of a.\na:\n  b:\n    c: 2\n", "a.b.c (line 4)"),
        ("# Of nobody.\n\na: 1\nb: 2\n", "a (line 3), b (line 4)"),
        ("# Of a.\na: 1\n#\nb: 2\n", "b (line 4)"),
    ],
    ids=["alone", "half of a group", "grandchild of a group", "cut off, and all are named", "empty comment"],
)
def test_key_without_a_meaning_is_refused_with_its_line(values: str, mute: str) -> None:
    """A group speaks for the keys right in it, and only where none of them speaks for itself."""
    with pytest.raises(InvalidInput) as refusal:
        readme(values)
    assert str(refusal.value) == f"no comment above {mute}: write there what it means"


def test_group_whose_keys_speak_for_themselves_has_a_row_of_its_own() -> None:
    """Its comment would be lost otherwise; one that speaks for its keys stands with them."""
    assert described(entries("# Of a.\na:\n  # Of b.\n  b: 1\n")) == {"a": "Of a.", "a.b": "Of b."}
    assert described(entries("# Of a.\na:\n  b: 1\n")) == {"a.b": "Of a."}


def test_file_that_is_no_map_is_refused() -> None:
    """An empty one too."""
    for text in ("", "- a\n"):
        with pytest.raises(InvalidInput, match="no map of keys"):
            entries(text)


def test_readme_is_what_the_values_say() -> None:
    """`python -m tools.chart_readme` after a change."""
    assert PATH.read_text(encoding="utf-8") == readme((CHART / "values.yaml").read_text(encoding="utf-8"))


def test_check_tells_of_a_page_that_drifted_and_of_a_mute_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with the next step; and writes nothing."""
    monkeypatch.setattr(chart_readme, "CHART", tmp_path)
    monkeypatch.setattr(chart_readme, "PATH", tmp_path / "README.md")
    values, page = tmp_path / "values.yaml", tmp_path / "README.md"
    values.write_text("# Of a.\na: 1\n")
    monkeypatch.setattr("sys.argv", ["chart_readme", "--check"])
    assert main() == 1 and not page.exists()
    assert "README.md is not what values.yaml says: python -m tools.chart_readme" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["chart_readme"])
    assert main() == 0
    monkeypatch.setattr("sys.argv", ["chart_readme", "--check"])
    assert main() == 0
    values.write_text("a: 1\n")
    assert main() == 1
    assert "values.yaml: no comment above a (line 1)" in capsys.readouterr().err
