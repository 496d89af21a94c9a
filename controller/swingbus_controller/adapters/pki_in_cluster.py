"""A certificate authority that lives in Secrets of a cluster: lent to a private folder, worked on there, given back.

Decides which file lies in which Secret. Refuses to know who gets a certificate. Invariants: the authority's key is in a Secret of its
own, which no pod of ours mounts; two who work on it at once can't both give it back. Whoever uses it gives it back before anything that it
made leaves the folder, so that every certificate is in its index first.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from swingbus.bundle import write_private
from swingbus.faults import AlreadyExists, NotFound, StaleRevision, WrongState
from swingbus_controller.adapters.kubernetes.answers import KubeApi
from swingbus_controller.adapters.kubernetes.secrets import SecretFiles, read_secret, write_secret

AUTHORITY_SECRET = "swingbus-authority"
CONTROLLER_SECRET = "swingbus-controller-certificates"
AGENTS_SECRET = "swingbus-agent-bundles"
TEST_SECRET = "swingbus-test-bundle"

# What the controller mounts, and the rest of an authority's folder.
_SHOWN = ("ca.pem", "server.pem", "endpoint.txt", "denied.txt")
_KEPT = (*_SHOWN, "ca-key.pem", "server-names.txt", "index.jsonl")


class LentAuthority:
    """A folder with the authority as its Secrets have it."""

    def __init__(
        self, api: KubeApi, namespace: str, directory: Path, authority: SecretFiles, shown: SecretFiles
    ) -> None:
        self.directory = directory
        self.is_new = not authority.is_there
        self._api, self._namespace = api, namespace
        self._authority, self._shown = authority, shown

    async def give_back(self) -> None:
        """Write both Secrets as the folder is now. Raises WrongState where somebody else did meanwhile; then nothing counts."""
        files = {name: (self.directory / name).read_text(encoding="utf-8") for name in _KEPT}
        shown = {name: files[name] for name in _SHOWN}
        try:
            await write_secret(self._api, self._namespace, AUTHORITY_SECRET, files, seen=self._authority)
            await write_secret(self._api, self._namespace, CONTROLLER_SECRET, shown, seen=self._shown)
        except (StaleRevision, AlreadyExists) as error:
            raise WrongState(
                f"somebody else worked on the certificate authority in namespace {self._namespace} at the same time ({error}): "
                "run this again",
                reason="AUTHORITY_BUSY",
                metadata={"namespace": self._namespace},
            ) from error


@asynccontextmanager
async def lend_authority(api: KubeApi, namespace: str, *, may_begin: bool = False) -> AsyncIterator[LentAuthority]:
    """Lend the authority of a namespace; the folder is gone afterwards.

    Args:
        may_begin: also where there is none yet; the folder is empty then.

    Raises NotFound where there is none, WrongState where half of it is missing.
    """
    authority = await read_secret(api, namespace, AUTHORITY_SECRET)
    shown = await read_secret(api, namespace, CONTROLLER_SECRET)
    if not authority.is_there and shown.is_there:
        raise WrongState(
            f"namespace {namespace} has the Secret {CONTROLLER_SECRET}, but not {AUTHORITY_SECRET}, whose key signed it: restore that "
            "from a backup. To begin anew, which locks out every agent and operator: "
            f"kubectl delete secret {CONTROLLER_SECRET} -n {namespace}",
            reason="AUTHORITY_LOST",
            metadata={"namespace": namespace},
        )
    if not authority.is_there and not may_begin:
        raise NotFound(
            f"there is no Secret {AUTHORITY_SECRET} in namespace {namespace}: the chart makes one with certificates.create=true; for an "
            "authority in a folder say --pki",
            reason="NO_AUTHORITY",
            metadata={"namespace": namespace},
        )
    with tempfile.TemporaryDirectory(prefix="swingbus-pki-") as folder:
        _write(Path(folder), authority.files)
        yield LentAuthority(api, namespace, Path(folder), authority, shown)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name in _KEPT:
        if name in files:
            write_private(folder / name, files[name])
