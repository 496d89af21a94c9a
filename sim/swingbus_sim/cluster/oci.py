"""OCI images as archives, written without a daemon: layers from folders, a config, one tar that `ctr images import` takes.

Decides only the form. Invariant: the same content gives the same bytes, whoever writes it when: names are sorted, every time is the epoch,
every owner is root, gzip carries no time, and a mode says only whether a file may be run (nothing is set-uid). A layer is a file on disk
beside its digests, so that images can share it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import stat
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swingbus.faults import InvalidInput

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
NAME_ANNOTATION = "io.containerd.image.name"  # under which `ctr images import` files it
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_GZIP_LEVEL = 6
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer on disk.

    Args:
        path: the packed file.
        digest: of the packed file; `diff_id` of what is in it.
        packed_bytes: the packed file's size.
        content_bytes: what its files take unpacked.
    """

    path: Path
    media_type: str
    digest: str
    diff_id: str
    packed_bytes: int
    content_bytes: int

    def descriptor(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.packed_bytes}


def architecture() -> str:
    """Return this machine's name for OCI; refuse one that nothing here was tried on."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise InvalidInput(
            f"no images for {machine}: known are {', '.join(_ARCHITECTURES)}; add it in {Path(__file__).name}"
        )
    return _ARCHITECTURES[machine]


def pack_tree(tree: Path, packed: Path) -> Layer:
    """Pack a folder as a layer (its content becomes the image's root); the packed file appears whole or not at all."""
    content_bytes = 0
    aside = packed.with_name(f"{packed.name}.part")
    plain = hashlib.sha256()
    # No file name in the gzip header: it would be this machine's.
    with aside.open("wb") as file, gzip.GzipFile("", "wb", _GZIP_LEVEL, fileobj=file, mtime=0) as squeezed:
        stream = _Hashing(squeezed, plain)
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK_BYTES) as tar:
            for path in sorted(tree.rglob("*")):
                content_bytes += _add_path(tar, path, path.relative_to(tree).as_posix())
    aside.rename(packed)
    return describe_layer(
        packed, diff_id=f"sha256:{plain.hexdigest()}", content_bytes=content_bytes, media_type=LAYER_TYPE
    )


def describe_layer(path: Path, *, diff_id: str, content_bytes: int, media_type: str) -> Layer:
    """Return a packed file as a layer; its digest is read from the file itself."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Layer(
        path=path,
        media_type=media_type,
        digest=f"sha256:{digest}",
        diff_id=diff_id,
        packed_bytes=path.stat().st_size,
        content_bytes=content_bytes,
    )


def save_layer(layer: Layer, note: Path) -> None:
    """Write what is known of a layer, so that a later run need not read the packed file."""
    note.write_text(json.dumps({**asdict(layer), "path": layer.path.name}, indent=1) + "\n")


def load_layer(note: Path) -> Layer | None:
    """Return the layer that a note beside it speaks of; None where either is missing or the file has another size."""
    try:
        told = json.loads(note.read_text())
        path = note.with_name(told.pop("path"))
        return Layer(path=path, **told) if path.stat().st_size == told["packed_bytes"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_archive(archive: Path, *, name: str, layers: Sequence[Layer], config: Mapping[str, Any]) -> str:
    """Write an image as one OCI archive and return its manifest's digest; the file appears whole or not at all.

    Args:
        archive: where.
        name: what the image is called on a node.
        layers: lowest first.
        config: what the image's `config` says (Entrypoint, Env, User, Labels).
    """
    told = {
        "architecture": architecture(),
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    config_blob = to_json(told)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _descriptor(CONFIG_TYPE, config_blob),
        "layers": [layer.descriptor() for layer in layers],
    }
    manifest_blob = to_json(manifest)
    named = {**_descriptor(MANIFEST_TYPE, manifest_blob), "annotations": {NAME_ANNOTATION: name}}
    aside = archive.with_name(f"{archive.name}.part")
    with tarfile.open(aside, "w", format=tarfile.PAX_FORMAT) as tar:
        add_file(tar, "oci-layout", to_json({"imageLayoutVersion": "1.0.0"}))
        add_file(tar, "index.json", to_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [named]}))
        for blob in (config_blob, manifest_blob):
            add_file(tar, blob_name(digest_of(blob)), blob)
        for layer in {each.digest: each for each in layers}.values():
            entry = tarfile.TarInfo(blob_name(layer.digest))
            entry.size, entry.mode = layer.packed_bytes, 0o644
            with layer.path.open("rb") as file:
                tar.addfile(entry, file)
    aside.rename(archive)
    return digest_of(manifest_blob)


def add_file(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    """Add a file that is only in memory."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def digest_of(blob: bytes) -> str:
    """Return a blob's digest as manifests write it."""
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def to_json(value: object) -> bytes:
    """Return JSON that is the same for the same value."""
    return json.dumps(value, sort_keys=True).encode()


def total_bytes(layers: Iterable[Layer]) -> int:
    """Return what layers take unpacked."""
    return sum(layer.content_bytes for layer in layers)


def _add_path(tar: tarfile.TarFile, path: Path, name: str) -> int:
    found = path.lstat()
    entry = tarfile.TarInfo(name)
    entry.mode = _mode(found.st_mode)
    if stat.S_ISLNK(found.st_mode):
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
        tar.addfile(entry)
        return 0
    if stat.S_ISDIR(found.st_mode):
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
        return 0
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInput(f"{path} is neither file, folder nor link: it can't be part of an image; remove it")
    entry.size = found.st_size
    with path.open("rb") as file:
        tar.addfile(entry, file)
    return found.st_size


def _mode(mode: int) -> int:
    if stat.S_ISDIR(mode):
        return 0o1777 if mode & stat.S_ISVTX else 0o755
    return 0o755 if mode & stat.S_IXUSR else 0o644


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(blob), "size": len(blob)}


def blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


class _Hashing(io.RawIOBase):
    """Passes on what is written and keeps its hash."""

    def __init__(self, target: gzip.GzipFile, digest: hashlib._Hash) -> None:
        self._target = target
        self._digest = digest

    def writable(self) -> bool:
        return True

    def write(self, block: Any) -> int:
        self._digest.update(block)
        return self._target.write(block)
