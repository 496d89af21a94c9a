"""OCI archives that somebody wrote, read without a daemon: the config, what is in each layer, and layers to take out.

Refuses an archive with more than one image, or of several architectures: which of them was meant is not ours to guess.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from swingbus.faults import InvalidInput
from swingbus_sim.cluster.oci import NAME_ANNOTATION, architecture, blob_name

_CHUNK_BYTES = 1 << 20


class ArchivedImage:
    """The one image of an OCI archive that somebody wrote: its config, and its layers to take out."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        index = self._read_json("index.json")
        manifests = index.get("manifests", [])
        if len(manifests) != 1:
            raise InvalidInput(
                f"{archive} holds {len(manifests)} images; save exactly one as an OCI archive, for this machine's architecture"
            )
        manifest = self._read_json(blob_name(manifests[0]["digest"]))
        if "layers" not in manifest:
            raise InvalidInput(
                f"{archive} is of several architectures; save the one for {architecture()} as an OCI archive"
            )
        self.name: str | None = manifests[0].get("annotations", {}).get(NAME_ANNOTATION)
        self.digest: str = manifests[0]["digest"]
        self.layers: list[dict[str, Any]] = manifest["layers"]
        self.about: dict[str, Any] = self._read_json(blob_name(manifest["config"]["digest"]))

    @property
    def config(self) -> dict[str, Any]:
        """Return Entrypoint, Env, User and Labels."""
        found: dict[str, Any] = self.about.get("config", {})
        return found

    def take_out(self, number: int, folder: Path) -> Path:
        """Write one packed layer into a folder, named by its digest, and return it."""
        digest: str = self.layers[number]["digest"]
        path = folder / digest.replace(":", "-")
        with tarfile.open(self._archive) as tar, path.open("wb") as file:
            member = tar.extractfile(blob_name(digest))
            if member is None:
                raise InvalidInput(f"{self._archive} lacks its layer {digest}; save it anew")
            shutil.copyfileobj(member, file, _CHUNK_BYTES)
        return path

    def names(self, number: int) -> list[str]:
        """Return the names of all that is in one layer."""
        with tarfile.open(self._archive) as tar:
            member = tar.extractfile(blob_name(self.layers[number]["digest"]))
            assert member is not None
            with tarfile.open(fileobj=member, mode="r|*") as layer:
                return [entry.name for entry in layer]

    def _read_json(self, name: str) -> dict[str, Any]:
        advice = "give an OCI archive (a tar with oci-layout and index.json)"
        try:
            with tarfile.open(self._archive) as tar:
                member = tar.extractfile(name)
                found = json.load(member) if member is not None else None
        except (OSError, KeyError, ValueError, tarfile.TarError) as error:
            raise InvalidInput(f"{self._archive} is no OCI archive ({error}); {advice}") from error
        if not isinstance(found, dict):
            raise InvalidInput(f"{self._archive}: {name} is not an object; {advice}")
        return found
