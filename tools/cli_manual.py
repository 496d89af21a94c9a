"""Write docs/cli.md from swingctl's own parser: `python -m tools.cli_manual [--check]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swingctl.main import build_parser

PATH = Path(__file__).parent.parent / "docs" / "cli.md"

INTRO = """# swingctl

Written by `python -m tools.cli_manual` from the program itself; a test compares. What it shows of a running site is in `protocol.md`,
how to get a bundle in `certificates.md`.

    export SWINGCTL_BUNDLE=~/dana.bundle.toml
    swingctl watch

## Exit codes

| code | meaning |
| --- | --- |
| 0 | done |
| 1 | refused: by the controller, or by you at the question. Nothing was changed |
| 2 | usage: the command line or the bundle is wrong. Nothing was sent |
| 3 | unreachable, or no answer in time. A write may have been carried out: the message names the `--request-id` to repeat it with |

Errors go to standard error with their reason, their facts and the next step; with `--output json` as one object `error` with
`exit_code`, `reason`, `message`, `metadata` and `next_step`. Standard output holds answers only.

## Names

`grid`, `edge-1`, `edge-1/s19j`, `edge-1/s19j/m07` or whole resource names (`sites/north/agents/edge-1/banks/s19j`). `--site` may be
left out where the controller serves one site. Power needs its unit (`400kW`, `1.2MW`, `350W`), and so do spans (`90s`, `15m`, `1h30m`,
`30d`).

## JSON

`--output json` prints the response message of the contract (`protos/swingbus/*/v1alpha`), all pages in one:

- every field, under its proto name, also when it is empty: keys never come and go
- canonical units as the names say (`limit_w`, `energy_j`, `hashrate_ths`); money as decimal strings
- an absent reading is `null`, never 0; times are RFC 3339 in UTC; a Duration `ramp` is the number `ramp_s`
- enums are words without their prefix (`MINING`, `ROLLED_BACK`), `UNRECOGNIZED_9` for one that this program does not know
- `events watch` and `watch` print one object a line

Fields are added, never renamed or removed, within a version of the contract. Tables may change at any time.

## Writes

Every write takes `--yes`, `--dry-run`, `--reason` and `--request-id`. At a terminal without `--yes` swingctl first lets the controller
check the very request (`validate_only`), shows what it would do, and asks. Without a terminal it needs `--yes`. The name in your
certificate is the author on the record, the reason stands beside it. Reads take the role viewer, writes operator; limits, authority and
lifting a lockout admin.
"""


def sub_parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Return (word, parser, summary) of each sub-command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, inner in action.choices.items():
                yield word, inner, summaries.get(word, "")


def leaves(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Return every command that does something."""
    inner = list(sub_parsers(parser))
    if not inner:
        yield words, parser
    for word, child, _ in inner:
        yield from leaves(child, (*words, word))


def spelled(action: Any) -> str:
    """Return how an argument is written."""
    if action.option_strings:
        value = (
            "" if action.nargs == 0 else " " + (action.metavar or "|".join(action.choices or ()) or action.dest.upper())
        )
        return f"`{action.option_strings[-1]}{value}`"
    return f"`{'|'.join(action.choices) if action.choices else (action.metavar or action.dest).upper()}`"


def rows(actions: list[Any]) -> list[str]:
    """Return table rows of arguments."""
    lines = []
    for action in actions:
        if isinstance(action, argparse._HelpAction | argparse._VersionAction | argparse._SubParsersAction):
            continue
        must = " (required)" if action.required and action.option_strings else ""
        cells = (spelled(action), (action.help or "") + must)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def examples(parser: argparse.ArgumentParser) -> list[str]:
    """Return the example command lines of a command's help."""
    return [line.strip() for line in (parser.epilog or "").splitlines() if line.startswith("  swingctl ")]


def manual() -> str:
    """Return the page."""
    parser = build_parser()
    shared = {option for action in parser._actions for option in action.option_strings}
    write_options = {"--yes", "--dry-run", "--reason", "--request-id"}
    lines = [
        INTRO,
        "## Options of every command",
        "",
        "| option | meaning |",
        "| --- | --- |",
        *rows(parser._actions),
        "",
        "## Commands",
        "",
    ]
    for word, inner, summary in sub_parsers(parser):
        lines += [f"### {word}", "", summary[:1].upper() + summary[1:] + ".", ""]
        for words, leaf in leaves(inner, (word,)):
            own = [a for a in leaf._actions if not (set(a.option_strings) & (shared | write_options))]
            is_write = any("--dry-run" in a.option_strings for a in leaf._actions)
            lines += [
                f"#### swingctl {' '.join(words)}{' (write)' if is_write else ''}",
                "",
                leaf.description or "",
                "",
            ]
            if table := rows(own):
                lines += ["| argument | meaning |", "| --- | --- |", *table, ""]
            lines += [*(f"    {line}" for line in examples(leaf)), ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the page, or with --check say whether it is current."""
    text = manual()
    if "--check" in sys.argv[1:]:
        if PATH.read_text(encoding="utf-8") == text:
            return 0
        print("docs/cli.md is not what swingctl says: python -m tools.cli_manual", file=sys.stderr)
        return 1
    PATH.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
