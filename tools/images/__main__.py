"""Build container images as OCI archives, without a daemon or a registry.

    python -m tools.images                                all of them, into build/images
    python -m tools.images swingbus-agent                 one
    python -m tools.images --base my-base.tar             on another base: an OCI archive with python3 (glibc)

Each archive goes to a registry with any tool that copies OCI archives, or onto a node with `ctr -n k8s.io images import`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from swingbus.faults import SwingbusError
from tools.images.build import DEFAULT_FOLDER, build_images
from tools.images.recipes import RECIPES


def main(arguments: list[str] | None = None) -> int:
    """Build and print one line per image; return 0, or 1 where something was refused."""
    options = _parser().parse_args(arguments)
    started_s = time.monotonic()
    try:
        images = build_images(options.image, options.out, say=_say, base_archive=options.base, cache=options.cache)
    except SwingbusError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    for built in images:
        sizes = f"{built.over_base_bytes / 1e6:6.1f} MB over its base, {built.archive_bytes / 1e6:6.1f} MB packed"
        print(f"{built.recipe.image:44} {sizes}  {built.archive}")
    _say(f"{len(images)} built in {time.monotonic() - started_s:.1f} s")
    return 0


def _say(words: str) -> None:
    print(f"images: {words}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.images", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="*", help=f"of {', '.join(recipe.name for recipe in RECIPES)}; default: all")
    parser.add_argument(
        "--base", type=Path, metavar="ARCHIVE", help="OCI archive to build on; default: Debian's python3"
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="where archives go (build/images)"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where layers are kept (DIR/cache)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
