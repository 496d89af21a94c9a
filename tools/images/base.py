"""The lowest layers of every image: made of Debian's packages, or taken from an OCI archive that somebody names.

Whatever it is, it is unpacked once, and its own python is asked what it is.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from swingbus.faults import InvalidInput
from swingbus_sim.cluster import oci
from swingbus_sim.cluster.oci_reading import ArchivedImage
from tools.images.base_python import BasePython, find_python
from tools.images.debian import choose_packages, unpack_packages
from tools.images.unpack import place, remove, unpack_entry

_FORM = "1"  # raise it when the same packages give another tree
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What images are built on.

    Args:
        key: another one where anything in it is another.
        name: for labels, so that people see what an image stands on.
    """

    key: str
    name: str
    layers: tuple[oci.Layer, ...]
    environment: tuple[str, ...]
    python: BasePython


def debian_base(cache: Path, say: Callable[[str], None]) -> Base:
    """Return the base of Debian's packages, from the cache where nothing of it is newer."""
    packages = choose_packages(say)
    told = "\n".join([_FORM, oci.architecture(), *(f"{package.file} {package.hash}" for package in packages)])
    key = hashlib.sha256(told.encode()).hexdigest()[:16]
    folder = cache / f"base-{key}"
    layer = oci.load_layer(folder / "layer.json")
    if layer is None:
        aside = _empty(folder)
        root = aside / "root"
        unpack_packages(packages, cache / "debian", root, say)
        say("compiling the standard library")
        python = find_python(root)
        python.compile(root, f"/usr/lib/python{python.version[0]}.{python.version[1]}")
        layer = oci.pack_tree(root, aside / "layer.tar.gz")
        oci.save_layer(layer, aside / "layer.json")
        aside.rename(folder)
        layer = oci.load_layer(folder / "layer.json")
        assert layer is not None
    return Base(
        key=key,
        name=f"debian packages {key}",
        layers=(layer,),
        environment=(_PATH, "LANG=C.UTF-8"),
        python=find_python(folder / "root"),
    )


def named_base(archive: Path, cache: Path, say: Callable[[str], None]) -> Base:
    """Return the image of an OCI archive as base."""
    image = ArchivedImage(archive)
    if image.about.get("architecture") != oci.architecture():
        raise InvalidInput(
            f"{archive} is for {image.about.get('architecture')}, this machine is {oci.architecture()}; save that one"
        )
    key = image.digest.partition(":")[2][:16]
    folder = cache / f"base-{key}"
    diff_ids = image.about["rootfs"]["diff_ids"]
    if not folder.exists():
        say(f"unpacking {archive.name}")
        aside = _empty(folder)
        root = aside / "root"
        root.mkdir()
        for number in range(len(image.layers)):
            _lay(image.take_out(number, aside), root)
        aside.rename(folder)
    layers = tuple(
        oci.describe_layer(
            folder / told["digest"].replace(":", "-"), diff_id=diff_id, content_bytes=0, media_type=told["mediaType"]
        )
        for told, diff_id in zip(image.layers, diff_ids, strict=True)
    )
    environment = tuple(image.config.get("Env") or (_PATH,))
    return Base(
        key=key,
        name=image.name or archive.name,
        layers=layers,
        environment=environment,
        python=find_python(folder / "root"),
    )


def merge_environment(base: tuple[str, ...], own: Mapping[str, str]) -> list[str]:
    """Return `Env` of an image: the base's, with our own words over it."""
    words = dict(each.partition("=")[::2] for each in base)
    return [f"{name}={value}" for name, value in {**words, **own}.items()]


def _empty(folder: Path) -> Path:
    """Return an empty folder beside the one wanted: that one appears only whole."""
    aside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def _lay(packed: Path, root: Path) -> None:
    """Lay a layer over what is there; an entry `.wh.NAME` takes NAME away."""
    with tarfile.open(packed, mode="r:*") as tar:
        for entry in tar:
            path = place(root, entry.name)
            if path.name == _OPAQUE:
                for below in path.parent.iterdir():
                    remove(below)
            elif path.name.startswith(_WHITEOUT):
                remove(path.with_name(path.name.removeprefix(_WHITEOUT)))
            else:
                unpack_entry(tar, entry, root)
