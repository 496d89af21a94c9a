"""Build the Debian package.

    python -m tools.deb                     build/deb/swingbus_VERSION+pyX.Y_ARCHITECTURE.deb

For the Debian release of the machine that builds: its Python and its C library are what the package asks for. Needs apt and dpkg-deb,
no root.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from swingbus.faults import SwingbusError
from tools.deb.package import DEFAULT_FOLDER, build_package


def main(arguments: list[str] | None = None) -> int:
    """Build and print one line; return 0, or 1 where something was refused."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.deb", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="where the package goes (build/deb)"
    )
    options = parser.parse_args(arguments)
    started_s = time.monotonic()
    try:
        built = build_package(options.out, say=_say)
    except SwingbusError as error:
        print(f"deb: {error}", file=sys.stderr)
        return 1
    print(f"{built.file}  {built.file_bytes / 1e6:.1f} MB, {built.installed_bytes / 1e6:.1f} MB installed")
    _say(f"built in {time.monotonic() - started_s:.1f} s")
    return 0


def _say(words: str) -> None:
    print(f"deb: {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
