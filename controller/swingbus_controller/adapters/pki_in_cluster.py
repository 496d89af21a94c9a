"""A certificate authority that lives in Secrets of a cluster: lent to a private folder, worked on there, given back.

Decides which file lies in which Secret. Refuses to know who gets a certificate. Invariants: the authority's key is in a Secret of its
own, which no pod of ours mounts; two who work on it at once can't both give it back. Whoever uses it gives it back before anything that it
made leaves the folder, so that every certificate is in its index first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from swingbus.bundle import write_private
from swingbus.faults import AlreadyExists, InvalidInput, NotFound, StaleRevision, WrongState
from swingbus_controller.adapters.kubernetes.answers import KubeApi
from swingbus_controller.adapters.kubernetes.secrets import SecretFiles, read_secret, write_secret
from swingbus_controller.adapters.pki_records import parse_deny_list
from swingbus_controller.adapters.server_files import DENY_LIST

AUTHORITY_SECRET = "swingbus-authority"
CONTROLLER_SECRET = "swingbus-controller-certificates"
AGENTS_SECRET = "swingbus-agent-bundles"
TEST_SECRET = "swingbus-test-bundle"

# What the controller mounts, and the rest of an authority's folder.
_SHOWN = ("ca.pem", "server.pem", "endpoint.txt", DENY_LIST)
_NEEDED = ("ca.pem", "endpoint.txt", "server-names.txt", "index.jsonl")
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
        """Write both Secrets as the folder is now; may be called again after more work.

        Raises WrongState where somebody else worked on the authority since it was lent; then nothing of this loan counts.
        """
        files = {
            name: (self.directory / name).read_text(encoding="utf-8")
            for name in _KEPT
            if (self.directory / name).exists()
        }
        try:
            self._authority = await write_secret(
                self._api, self._namespace, AUTHORITY_SECRET, files, seen=self._authority
            )
        except (StaleRevision, AlreadyExists) as error:
            raise WrongState(
                f"somebody else worked on the certificate authority in namespace {self._namespace} at the same time ({error}): "
                "run this again",
                reason="AUTHORITY_BUSY",
                metadata={"namespace": self._namespace},
            ) from error
        await self._show({name: files[name] for name in _SHOWN if name in files})

    async def _show(self, shown: Mapping[str, str]) -> None:
        """Let the controller's Secret follow the authority's, which is the one that counts."""
        while True:
            try:
                self._shown = await write_secret(self._api, self._namespace, CONTROLLER_SECRET, shown, seen=self._shown)
                return
            except (StaleRevision, AlreadyExists):
                self._shown = await read_secret(self._api, self._namespace, CONTROLLER_SECRET)
                newest = await read_secret(self._api, self._namespace, AUTHORITY_SECRET)
                if newest.revision != self._authority.revision:
                    return  # a later loan, which writes what follows from its own authority


@asynccontextmanager
async def lend_authority(api: KubeApi, namespace: str, *, may_begin: bool = False) -> AsyncIterator[LentAuthority]:
    """Lend the authority of a namespace; the folder is gone afterwards.

    Args:
        may_begin: also where there is none yet; the folder is empty then.

    Raises NotFound where there is none, WrongState or InvalidInput where half of it is missing.
    """
    # In this order: what is shown may then be older than the authority, never newer, and an older one is never written over a newer.
    shown = await read_secret(api, namespace, CONTROLLER_SECRET)
    authority = await read_secret(api, namespace, AUTHORITY_SECRET)
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
    if missing := [name for name in _NEEDED if authority.is_there and name not in authority.files]:
        raise InvalidInput(
            f"the Secret {AUTHORITY_SECRET} in namespace {namespace} has no {', '.join(missing)}: restore it from a backup",
            reason="BAD_AUTHORITY",
            metadata={"namespace": namespace},
        )
    with tempfile.TemporaryDirectory(prefix="swingbus-pki-", dir=_memory()) as folder:
        files = dict(authority.files)
        if authority.is_there:
            # An authority that was put back from a backup takes back nobody's revocation.
            files[DENY_LIST] = _united(files.get(DENY_LIST, ""), shown.files.get(DENY_LIST, ""))
        for name in _KEPT:
            if name in files:
                write_private(Path(folder) / name, files[name])
        yield LentAuthority(api, namespace, Path(folder), authority, shown)


def _united(own: str, shown: str) -> str:
    """Return a deny list with the serials of both."""
    known = parse_deny_list(own, AUTHORITY_SECRET)
    lines = [line for line in shown.splitlines() if parse_deny_list(line, CONTROLLER_SECRET) - known]
    return own + "".join(f"{line}\n" for line in lines)


def _memory() -> str | None:
    """Return a folder in memory, where the key never reaches a disk; None, the default, where TMPDIR says where or there is none."""
    if os.environ.get("TMPDIR"):
        return None
    places = (os.environ.get("XDG_RUNTIME_DIR", ""), "/dev/shm")
    return next((place for place in places if place and os.access(place, os.W_OK | os.X_OK)), None)
