"""Run the agent's program with only what an agent's host has installed.

A developer's environment holds more than the extra `agent` brings, and some libraries load what they happen to find: structlog loads rich
for tracebacks in colour, 7 MB that no site has. What is hidden here is named; everything else is the program as it is.
"""

from __future__ import annotations

import sys

NOT_INSTALLED = ("rich", "better_exceptions", "attr", "numpy", "uvloop")


def main() -> int:
    """Hide what would not be there, then run."""
    for name in NOT_INSTALLED:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system's own way to say "not found"
    from swingbus_agent.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
