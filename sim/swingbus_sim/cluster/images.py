"""The one image that a node needs to begin with, made on the spot: a program that only waits, and links where a system has folders.

It holds pods' namespaces open (the sandbox) and serves as base for probes: a pod that mounts the machine's /usr over it runs the machine's
own programs (python3, sh) without any image being downloaded. The wait program is written here byte by byte, so no compiler is needed.
"""

from __future__ import annotations

import platform
import struct
import tempfile
from pathlib import Path

from swingbus.faults import InvalidInput
from swingbus_sim.cluster import oci

BASE_IMAGE = "swingbus.invalid/base:1"
_LOAD_ADDRESS = 0x40_0000
_HEADERS_BYTES = 64 + 56
# Wait for a signal, for ever. No handler is set, so as a container's first process it ends only when killed.
_CODE = {
    "x86_64": (62, bytes.fromhex("b822000000 0f05 ebf7")),  # again: pause(); jump again
    "aarch64": (
        183,
        bytes.fromhex("000080d2 010080d2 020080d2 030080d2 280980d2 010000d4 faffff17"),
    ),  # ppoll(0, 0, 0, 0)
}


def write_base_image(archive: Path) -> None:
    """Write the image as an OCI archive that `ctr images import` takes."""
    machine = platform.machine()
    if machine not in _CODE:
        raise InvalidInput(f"no base image for {machine}: add its wait program to {Path(__file__).name}")
    with tempfile.TemporaryDirectory(prefix="swingbus-base-") as aside:
        tree = Path(aside) / "tree"
        for name in ("usr", "etc", "proc", "sys", "dev", "tmp"):
            (tree / name).mkdir(parents=True)
        (tree / "tmp").chmod(0o1777)
        for name in ("bin", "sbin", "lib", "lib64"):
            (tree / name).symlink_to(f"usr/{name}")
        (tree / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\nnobody:x:65532:65532::/:/bin/sh\n")
        pause = tree / "pause"
        pause.write_bytes(_program(*_CODE[machine]))
        pause.chmod(0o755)
        layer = oci.pack_tree(tree, Path(aside) / "layer.tar.gz")
        oci.write_archive(
            archive, name=BASE_IMAGE, layers=[layer], config={"Entrypoint": ["/pause"], "WorkingDir": "/"}
        )


def _program(machine_number: int, code: bytes) -> bytes:
    """Return a static ELF program of one loadable segment that is nothing but the code."""
    entry = _LOAD_ADDRESS + _HEADERS_BYTES
    size = _HEADERS_BYTES + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine_number, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1_0000)
    return header + segment + code
