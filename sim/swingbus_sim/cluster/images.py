"""The one image that a node needs to begin with, made on the spot: a program that only waits, and links where a system has folders.

It holds pods' namespaces open (the sandbox) and serves as base for probes: a pod that mounts the machine's /usr over it runs the machine's
own programs (python3, sh) without any image being downloaded. The wait program is written here byte by byte, so no compiler is needed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import struct
import tarfile
from pathlib import Path
from typing import Any

from swingbus.faults import InvalidInput

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
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}


def write_base_image(archive: Path) -> None:
    """Write the image as an OCI archive that `ctr images import` takes."""
    machine = platform.machine()
    if machine not in _CODE:
        raise InvalidInput(f"no base image for {machine}: add its wait program to {Path(__file__).name}")
    layer = _layer(machine)
    packed = gzip.compress(layer, mtime=0)
    config = _json(
        {
            "architecture": _ARCHITECTURE[machine],
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar+gzip", packed)],
        }
    )
    named = _descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
    named["annotations"] = {"io.containerd.image.name": BASE_IMAGE}
    with tarfile.open(archive, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", _json({"schemaVersion": 2, "manifests": [named]}))
        for blob in (config, packed, manifest):
            _add(tar, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)


def _layer(machine: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, mode in (
            ("usr", 0o755),
            ("etc", 0o755),
            ("proc", 0o555),
            ("sys", 0o555),
            ("dev", 0o755),
            ("tmp", 0o1777),
        ):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
        for name in ("bin", "sbin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        _add(tar, "etc/passwd", b"root:x:0:0::/:/bin/sh\nnobody:x:65532:65532::/:/bin/sh\n")
        _add(tar, "pause", _program(*_CODE[machine]), mode=0o755)
    return stream.getvalue()


def _program(machine_number: int, code: bytes) -> bytes:
    """Return a static ELF program of one loadable segment that is nothing but the code."""
    entry = _LOAD_ADDRESS + _HEADERS_BYTES
    size = _HEADERS_BYTES + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine_number, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1_0000)
    return header + segment + code


def _add(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
