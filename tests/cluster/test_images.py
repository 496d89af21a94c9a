"""Our images as archives: what is in them and what is not, how large they are, and that the same sources give the same bytes."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from swingbus.faults import InvalidInput, OverBudget
from swingbus_sim.cluster import oci
from swingbus_sim.cluster.oci_reading import ArchivedImage
from tools.images.base import debian_base
from tools.images.build import DEFAULT_FOLDER, Builder, Built, build_images
from tools.images.recipes import find_recipe
from tools.images.unpack import resolve, unpack_entry

_REPOSITORY = Path(__file__).parents[2]
_CACHE = DEFAULT_FOLDER / "cache"
pytestmark = pytest.mark.timeout(600)  # the first one fetches packages and wheels


def _quiet(words: str) -> None:
    """Say nothing."""


def _own_names(built: Built) -> list[str]:
    """Return what an image adds to its base."""
    image = ArchivedImage(built.archive)
    return [name for number in range(1, len(image.layers)) for name in image.names(number)]


def _site_packages(built: Built) -> set[str]:
    return {name.split("-packages/")[1].split("/")[0] for name in _own_names(built) if "-packages/" in name}


def test_images_are_within_their_size(images: Mapping[str, Built]) -> None:
    """Over the base: 280 MB for the controller, 80 MB for the agent; the toys have no third-party package at all."""
    for built in images.values():
        print(f"{built.recipe.name}: {built.over_base_bytes / 1e6:.1f} MB over its base")
        assert 0 < built.over_base_bytes <= built.recipe.over_base_bytes_max
    limits = {name: images[name].recipe.over_base_bytes_max for name in ("swingbus-controller", "swingbus-agent")}
    assert limits == {"swingbus-controller": 280_000_000, "swingbus-agent": 80_000_000}
    assert _site_packages(images["toy-miner"]) == {"swingbus", "swingbus_sim"}


def test_image_over_its_size_is_refused(images: Mapping[str, Built], tmp_path: Path) -> None:
    """Before any archive is written, and with what to do."""
    recipe = replace(find_recipe("toy-miner"), over_base_bytes_max=1000)
    with pytest.raises(OverBudget, match="leave out what it does not need"):
        Builder(_REPOSITORY, debian_base(_CACHE, _quiet), _CACHE, _quiet).build(recipe, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_simulator_is_in_the_toys_alone(images: Mapping[str, Built]) -> None:
    """An agent that could load it could take play for a GPU; nor does a program carry another's code."""
    agent, controller = _site_packages(images["swingbus-agent"]), _site_packages(images["swingbus-controller"])
    assert {"swingbus", "swingbus_agent", "grpc"} <= agent
    assert {"swingbus", "swingbus_controller", "swingctl", "grpc", "kubernetes"} <= controller
    assert not agent & {"swingbus_sim", "swingbus_controller", "swingctl", "kubernetes", "numpy"}
    assert not controller & {"swingbus_sim", "swingbus_agent", "pynvml.py"}


def test_images_start_as_nobody_and_need_to_write_nothing(images: Mapping[str, Built]) -> None:
    """A number as user (kubelet can check it), byte code beside every module of ours, no set-uid file, nothing of this machine."""
    for built in images.values():
        image = ArchivedImage(built.archive)
        assert image.name == built.recipe.image
        assert image.config["User"] == "65532:65532"
        assert image.config["Entrypoint"] == [f"/usr/local/bin/{built.recipe.entry}"]
        assert "PYTHONDONTWRITEBYTECODE=1" in image.config["Env"]
        names = set(_own_names(built))
        sources = {name for name in names if "-packages/swingbus" in name and name.endswith(".py")}
        compiled = {
            name.replace("__pycache__/", "").replace(".cpython-311", "")[:-1] for name in names if "pyc" in name
        }
        assert sources and sources <= compiled, built.recipe.name
    base = ArchivedImage(images["toy-miner"].archive)
    with tarfile.open(images["toy-miner"].archive) as archive:
        for told in base.layers:
            blob = archive.extractfile(f"blobs/{told['digest'].replace(':', '/')}")
            assert blob is not None
            with tarfile.open(fileobj=blob, mode="r|*") as layer:
                odd = [e.name for e in layer if e.mode & 0o6000 or e.mtime or e.uid or e.gid or e.isdev()]
            assert odd == []


def test_same_sources_give_the_same_bytes(images: Mapping[str, Built], tmp_path: Path) -> None:
    """From nothing but the packages' files: base, wheels and code anew."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "debian").symlink_to(_CACHE / "debian")
    again = build_images(("swingbus-agent", "toy-miner"), tmp_path, say=_quiet)
    for built in again:
        assert built.digest == images[built.recipe.name].digest, built.recipe.name
        assert built.archive.read_bytes() == images[built.recipe.name].archive.read_bytes()


def test_another_base_can_be_named(images: Mapping[str, Built], tmp_path: Path) -> None:
    """Any OCI archive with a python3: its layers and variables stay below ours, and its own python says where code belongs."""
    own = ArchivedImage(images["toy-miner"].archive)
    layer = oci.describe_layer(
        own.take_out(0, tmp_path),
        diff_id=own.about["rootfs"]["diff_ids"][0],
        content_bytes=0,
        media_type=own.layers[0]["mediaType"],
    )
    theirs = tmp_path / "theirs.tar"
    variables = ["PATH=/usr/bin", "THEIRS=kept"]
    oci.write_archive(theirs, name="example.invalid/theirs:2", layers=[layer], config={"Env": variables})

    (built,) = build_images(("toy-miner",), tmp_path / "out", say=_quiet, base_archive=theirs)

    image = ArchivedImage(built.archive)
    assert image.layers == own.layers
    assert {"PATH=/usr/bin", "THEIRS=kept"} <= set(image.config["Env"])
    assert image.config["Labels"]["org.opencontainers.image.base.name"] == "example.invalid/theirs:2"


def test_base_that_is_none_is_refused(tmp_path: Path) -> None:
    """With what it lacks and what to give instead."""
    (tmp_path / "text.tar").write_text("no archive")
    with pytest.raises(InvalidInput, match="is no OCI archive"):
        build_images((), tmp_path / "out", say=_quiet, base_archive=tmp_path / "text.tar")
    (tmp_path / "tree" / "etc").mkdir(parents=True)
    layer = oci.pack_tree(tmp_path / "tree", tmp_path / "layer.tar.gz")
    oci.write_archive(tmp_path / "empty.tar", name="example.invalid/empty:1", layers=[layer], config={})
    with pytest.raises(InvalidInput, match="the base has no python3"):
        build_images((), tmp_path / "out", say=_quiet, base_archive=tmp_path / "empty.tar")
    with pytest.raises(InvalidInput, match="no image 'swingbus'"):
        build_images(("swingbus",), tmp_path / "out", say=_quiet)


def test_unpacking_never_leaves_its_root(tmp_path: Path) -> None:
    """Links that lead to the machine's own folders, and names with dots, end inside."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        link = tarfile.TarInfo("var/run")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
        oci.add_file(tar, "var/run/through-a-link", b"1")
        oci.add_file(tar, "../../outside/through-dots", b"2")
    packed.seek(0)
    with tarfile.open(fileobj=packed) as tar:
        for entry in tar:
            unpack_entry(tar, entry, root)
    assert list(outside.iterdir()) == []
    assert (resolve(root, root / "var" / "run") / "through-a-link").read_bytes() == b"1"
    assert (root / "outside" / "through-dots").read_bytes() == b"2"


def test_command_line_builds_one_image(images: Mapping[str, Built], tmp_path: Path) -> None:
    """As people do it; all of it from the cache, within seconds."""
    command = (sys.executable, "-m", "tools.images", "toy-miner", "--out", tmp_path, "--cache", _CACHE)
    done = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, timeout=30, check=True)
    assert f"{images['toy-miner'].recipe.image} " in done.stdout and "MB over its base" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["toy-miner.tar"]
