"""Regenerate the messages and stubs of the contract, in place, with the pinned generator.

`python protos/generate.py` writes; `python protos/generate.py --check` regenerates elsewhere and fails if the committed files differ.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
WELL_KNOWN = Path(grpc_tools.__file__).resolve().parent / "_proto"


def generate(out: Path) -> list[Path]:
    """Write every generated file below `out`; return their paths relative to it."""
    # Ours, and below `kubelet` what Kubernetes defines: its versions, its names.
    patterns = ("swingbus/*/v1alpha/*.proto", "swingbus/kubelet/*/*/*.proto")
    sources = sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))
    services = [source for source in sources if source.endswith("_service.proto")]
    common = ["protoc", f"-I{ROOT}", f"-I{WELL_KNOWN}"]
    steps = (
        [*common, f"--python_out={out}", f"--pyi_out={out}", *sources],
        [*common, f"--grpc_python_out={out}", f"--mypy_grpc_out={out}", *services],
    )
    for step in steps:
        if protoc.main(step) != 0:
            raise SystemExit("protoc failed: see its message above")
    for folder in {out / Path(source).parent for source in sources} | {(out / Path(s).parent).parent for s in sources}:
        (folder / "__init__.py").touch()
    return sorted(path.relative_to(out) for path in out.rglob("*_pb2*.py*"))


def main() -> int:
    """Regenerate or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail if committed files are not what the generator makes"
    )
    if not parser.parse_args().check:
        print(f"{len(generate(ROOT))} files written")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        fresh = generate(out)
        stale = [str(p) for p in fresh if not (ROOT / p).exists() or not filecmp.cmp(out / p, ROOT / p, shallow=False)]
        committed = {path.relative_to(ROOT) for path in ROOT.rglob("*_pb2*.py*") if "__pycache__" not in path.parts}
        orphans = sorted(str(path) for path in committed - set(fresh))
    if stale or orphans:
        print(
            f"generated code is not what the protos say: {', '.join(stale + orphans)}; run `make proto`",
            file=sys.stderr,
        )
        return 1
    print(f"{len(fresh)} generated files are up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
