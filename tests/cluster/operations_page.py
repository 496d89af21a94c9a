"""The commands of docs/operations.md as they stand there, for tests to run: a heading, its indented blocks."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


def commands_under(heading: str, sub_heading: str) -> str:
    """Return the indented lines below `### sub_heading` within `## heading`, as one would paste them."""
    taken: list[str] = []
    inside = within = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            within, inside = line == f"## {heading}", False
        elif line.startswith("### "):
            inside = within and line == f"### {sub_heading}"
        elif inside and line.startswith("    "):
            taken.append(line[4:])
    assert taken, f"{PAGE} has no commands under {heading}, {sub_heading}"
    return "\n".join(taken) + "\n"
