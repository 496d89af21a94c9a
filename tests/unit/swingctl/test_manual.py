"""The manual and the help: current, complete, and their examples really parse."""

from __future__ import annotations

import argparse
import shlex

import pytest

from swingctl.main import build_parser
from tools.cli_manual import PATH, examples, leaves, manual

COMMANDS = {" ".join(words): parser for words, parser in leaves(build_parser())}

# What the issue names.
WANTED = (
    "site list",
    "site show",
    "feeder list",
    "feeder show",
    "agent list",
    "agent show",
    "bank list",
    "bank show",
    "device list",
    "device show",
    "events list",
    "watch",
    "curtail start",
    "curtail show",
    "curtail list",
    "curtail end",
    "pin set",
    "pin lift",
    "lockout set",
    "lockout lift",
    "authority set",
    "limit set",
    "limit clear",
    "plan show",
    "plan explain",
    "plan why-not",
    "flip list",
    "flip show",
    "flip request",
    "flip cancel",
    "market list",
    "market push",
    "reservation list",
    "reservation create",
    "reservation end",
)


def test_manual_is_what_the_program_says() -> None:
    """`python -m tools.cli_manual` after a change."""
    assert PATH.read_text(encoding="utf-8") == manual()


@pytest.mark.parametrize("command", WANTED)
def test_wanted_command_is_there(command: str) -> None:
    """Nouns and verbs of the issue."""
    assert command in COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_and_examples_that_parse(command: str) -> None:
    """An example that does not run is worse than none."""
    parser = COMMANDS[command]
    lines = examples(parser)
    assert parser.description and lines
    for line in lines:
        argv = shlex.split(line.partition(" | ")[0])[1:]
        args = build_parser().parse_args(argv)
        assert line.startswith(f"swingctl {command}")
        assert callable(args.handler)
    assert command.split()[0] in parser.format_help()


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_argument_says_what_it_is(command: str) -> None:
    """No option without help; every write offers the same four."""
    actions = COMMANDS[command]._actions
    assert all(action.help and action.help is not argparse.SUPPRESS for action in actions)
    options = {option for action in actions for option in action.option_strings}
    write = {"--yes", "--dry-run", "--reason", "--request-id"}
    assert options & write in (set(), write)
    assert {"--bundle", "--endpoint", "--output", "--timeout"} <= options
