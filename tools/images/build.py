"""Put images together from cached layers: base, third-party wheels, our code, lowest first.

One program at a time works on a cache (a file lock): two that start together do the work once.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from swingbus import __version__
from swingbus.faults import OverBudget
from swingbus_sim.cluster import oci
from tools.images.base import Base, debian_base, merge_environment, named_base
from tools.images.own_code import code_key, lay_code
from tools.images.recipes import RECIPES, USER, Recipe, find_recipe
from tools.images.wheels import install_wheels, wheels_key

_REPOSITORY = Path(__file__).parents[2]
DEFAULT_FOLDER = _REPOSITORY / "build" / "images"
_SOURCE_LABELS = {
    "org.opencontainers.image.licenses": "Apache-2.0",
    "org.opencontainers.image.vendor": "Swingbus",
    "org.opencontainers.image.version": __version__,
}
# Written nowhere at run time: the root file system may be read-only, and byte code is there already.
_ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
_KEPT_PER_KIND = 6  # layers of a kind in the cache; older ones go


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An image on disk.

    Args:
        over_base_bytes: what wheels and code take unpacked.
        archive_bytes: the archive, all layers packed.
    """

    recipe: Recipe
    archive: Path
    digest: str
    over_base_bytes: int
    archive_bytes: int


def build_images(
    names: Sequence[str],
    folder: Path,
    *,
    say: Callable[[str], None],
    base_archive: Path | None = None,
    cache: Path | None = None,
) -> list[Built]:
    """Write images into a folder and return them in the order of their names.

    Args:
        names: of recipes; none means all.
        folder: where archives go.
        say: told what takes time.
        base_archive: an OCI archive to build on; None makes the base of Debian's packages.
        cache: where layers are kept; None means inside the folder.
    """
    recipes = [find_recipe(name) for name in names] or list(RECIPES)
    kept = (cache or folder / "cache").absolute()
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base = debian_base(kept, say) if base_archive is None else named_base(base_archive, kept, say)
        say(f"base: {base.name}, python {base.python.full_version}")
        builder = Builder(_REPOSITORY, base, kept, say)
        return [builder.build(recipe, folder) for recipe in recipes]


class Builder:
    """Builds images of one checkout on one base."""

    def __init__(self, repository: Path, base: Base, cache: Path, say: Callable[[str], None]) -> None:
        self._repository = repository
        self._base = base
        self._cache = cache
        self._say = say

    def build(self, recipe: Recipe, folder: Path) -> Built:
        """Write one image's archive into a folder; raise OverBudget where it is larger than its recipe allows."""
        own = [*self._wheels(recipe), self._code(recipe)]
        over_base = oci.total_bytes(own)
        if over_base > recipe.over_base_bytes_max:
            raise OverBudget(
                f"{recipe.name} takes {over_base / 1e6:.1f} MB over its base, {recipe.over_base_bytes_max / 1e6:.0f} MB at most: "
                "leave out what it does not need (tools/images/wheels.py), or raise its limit in tools/images/recipes.py"
            )
        archive = folder / f"{recipe.name}.tar"
        folder.mkdir(parents=True, exist_ok=True)
        digest = oci.write_archive(
            archive, name=recipe.image, layers=[*self._base.layers, *own], config=self._config(recipe)
        )
        return Built(
            recipe=recipe,
            archive=archive,
            digest=digest,
            over_base_bytes=over_base,
            archive_bytes=archive.stat().st_size,
        )

    def _config(self, recipe: Recipe) -> dict[str, object]:
        return {
            "Entrypoint": [f"/usr/local/bin/{recipe.entry}"],
            "Env": merge_environment(self._base.environment, _ENVIRONMENT),
            "Labels": {
                **_SOURCE_LABELS,
                "org.opencontainers.image.title": recipe.name,
                "org.opencontainers.image.description": recipe.what,
                "org.opencontainers.image.base.name": self._base.name,
            },
            "User": USER,
            "WorkingDir": "/",
        }

    def _wheels(self, recipe: Recipe) -> list[oci.Layer]:
        extra = recipe.extra
        if extra is None:
            return []
        key = wheels_key(self._repository, (extra,), self._base.python)

        def fill(tree: Path) -> None:
            self._say(f"installing the wheels of [{extra}]")
            install_wheels(self._repository, (extra,), self._base.python, tree)

        return [self._layer(f"wheels-{extra}", key, fill)]

    def _code(self, recipe: Recipe) -> oci.Layer:
        key = code_key(self._repository, recipe, self._base.python)
        return self._layer(
            f"code-{recipe.name}", key, lambda tree: lay_code(self._repository, recipe, self._base.python, tree)
        )

    def _layer(self, kind: str, key: str, fill: Callable[[Path], None]) -> oci.Layer:
        folder = self._cache / "layers"
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / f"{kind}-{key}.json"
        layer = oci.load_layer(note)
        if layer is None:
            tree = folder / f"{kind}-{key}.tree"
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir()
            try:
                fill(tree)
                layer = oci.pack_tree(tree, folder / f"{kind}-{key}.tar.gz")
            finally:
                shutil.rmtree(tree)
            oci.save_layer(layer, note)
            self._forget_old(folder, kind)
        return layer

    @staticmethod
    def _forget_old(folder: Path, kind: str) -> None:
        notes = sorted(folder.glob(f"{kind}-????????????????.json"), key=lambda note: note.stat().st_mtime)
        for note in notes[:-_KEPT_PER_KIND]:
            note.with_suffix(".tar.gz").unlink(missing_ok=True)
            note.unlink()
