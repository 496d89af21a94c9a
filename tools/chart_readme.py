"""Write the chart's README from values.yaml and its comments: `python -m tools.chart_readme [--check]`.

A key's comment is the block of comment lines right above it, at its own indentation. A blank line, or a line at another indentation, ends
the block: so the file's own heading and an example that is commented out below a key, deeper than the key, belong to nobody. Lines of the
block that are indented by two or more behind their `#` are an example; the rest is the meaning, joined to one line.

A leaf is whatever is not a block of keys: a scalar, a list, a map in braces. Each leaf needs a meaning. It is the leaf's own comment; or
that of the key right above it, where no leaf there has one of its own: a group is explained as a whole or key by key, never half.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from swingbus.faults import InvalidInput

CHART = Path(__file__).parent.parent / "charts" / "swingbus"
PATH = CHART / "README.md"

INTRO = """# The chart

Written by `python -m tools.chart_readme` from `values.yaml` and its comments; `make check` compares. How the gate, the controller and the
agents work in a cluster is in [the manual](../../docs/kubernetes.md).

    helm upgrade --install swingbus charts/swingbus -n swingbus-system --create-namespace

This installs the power gate: the definition of CapacityPool, the policies, the miners' namespace, and the controller's account with its
rights. The controller and the agents are off until you say where their images are, which certificates they have and what the site is.
Kubernetes 1.30 or newer; below 1.36 with `gate.inject=false`.

Objects are in the release's namespace and in `miners.namespace`, or belong to the whole cluster. Names are fixed: one release a cluster.

`ci/` has the values of whole installations, each tried on a real API server: begin with the one that is nearest to yours. A key that is
not listed here is refused, but within what is Kubernetes' own (resources, node selectors, tolerations, affinity, annotations, `extra*`)
and in `global`.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of the values.

    Args:
        path: the key with those above it, dotted.
        line: where it stands, from 1.
        default: its value in one line; None for a block of keys.
        meaning: its comment, in one line; empty where there is none.
        example: lines of an example in its comment.
    """

    path: str
    line: int
    default: str | None
    meaning: str
    example: tuple[str, ...] = ()

    @property
    def group(self) -> str:
        """Return the key right above it; empty for a key of the first level."""
        return self.path.rpartition(".")[0]


def comment_above(lines: list[str], line: int, indent: int) -> tuple[str, tuple[str, ...]]:
    """Return meaning and example of the key at `line` (from 0)."""
    first = line
    while first > 0 and lines[first - 1].startswith(" " * indent + "#"):
        first -= 1
    block = [text.strip().removeprefix("#").removeprefix(" ") for text in lines[first:line]]
    example = tuple(text for text in block if text.startswith("  "))
    return " ".join(text.strip() for text in block if text not in example).strip(), example


def entries(text: str) -> list[Entry]:
    """Return all keys of a values file, in its order, those of blocks before what is in them."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise InvalidInput("the values file is no map of keys: nothing to describe")
    return list(_walk(root, "", text.splitlines()))


def _walk(node: yaml.MappingNode, above: str, lines: list[str]) -> Iterator[Entry]:
    for key, value in node.value:
        path = f"{above}.{key.value}" if above else key.value
        mark = key.start_mark
        meaning, example = comment_above(lines, mark.line, mark.column)
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        yield Entry(path, mark.line + 1, None if is_block else _written(value, lines), meaning, example)
        if is_block:
            yield from _walk(value, path, lines)


def _written(node: yaml.Node, lines: list[str]) -> str:
    """Return a default as the file has it, or as JSON where that is more than one line."""
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        return str(lines[start.line][start.column : end.column])
    return json.dumps(yaml.SafeLoader("").construct_document(node))


def described(found: list[Entry]) -> dict[str, str]:
    """Return the meaning of each leaf, and of each group that does not lend its own; raise InvalidInput naming leaves that have none."""
    leaves = [entry for entry in found if entry.default is not None]
    groups = {entry.path: entry.meaning for entry in found if entry.default is None}
    lenders = {entry.group for entry in leaves} - {entry.group for entry in leaves if entry.meaning}
    meanings = {path: words for path, words in groups.items() if words and path not in lenders}
    for entry in leaves:
        meanings[entry.path] = entry.meaning or (groups.get(entry.group, "") if entry.group in lenders else "")
    if mute := [f"{entry.path} (line {entry.line})" for entry in leaves if not meanings[entry.path]]:
        raise InvalidInput(f"no comment above {', '.join(mute)}: write there what it means")
    return meanings


def readme(text: str) -> str:
    """Return the page for a values file."""
    found = entries(text)
    meanings = described(found)
    lines = [INTRO]
    for top in (entry for entry in found if not entry.group):
        own = [entry for entry in found if entry.path == top.path or entry.path.startswith(f"{top.path}.")]
        lines += [f"## {top.path}", "", "| key | default | meaning |", "| --- | --- | --- |"]
        lines += [_row(entry, meanings[entry.path]) for entry in own if entry.path in meanings]
        for entry in own:
            if entry.example:
                lines += ["", f"An example of `{entry.path}`:", "", *(f"  {line}" for line in entry.example)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _row(entry: Entry, meaning: str) -> str:
    default = "" if entry.default is None else f"`{entry.default}`"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{entry.path}`", default, meaning)) + " |"


def main() -> int:
    """Write the page, or with --check say whether it is current."""
    try:
        text = readme((CHART / "values.yaml").read_text(encoding="utf-8"))
    except InvalidInput as lack:
        print(f"charts/swingbus/values.yaml: {lack}", file=sys.stderr)
        return 1
    if "--check" not in sys.argv[1:]:
        PATH.write_text(text, encoding="utf-8")
    elif not PATH.exists() or PATH.read_text(encoding="utf-8") != text:
        print("charts/swingbus/README.md is not what values.yaml says: python -m tools.chart_readme", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
