"""Where the API server is and how we show who we are, from within a pod: the files that every pod is given.

Decides that TLS is always on and verified. Refuses to know calls. Invariant: no token or key is in any message.

The official client has a loader for this too, but to import anything of that package costs 20 MB, for clients of every kind: only who uses
a kubeconfig pays for it (`kubeconfig`). And it re-reads a rotated token by the wall clock, which jumps, and keeps its line end; ours reads
the file for every request (some 20 us), so that a rotation cannot be missed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from swingbus.faults import InvalidInput, NotFound

SERVICE_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiServer:
    """Where the API server is, and the files by which the two sides know each other.

    Args:
        url: https, without a slash at its end.
        ca_file: who may have signed its certificate; None for whom the system trusts.
        certificate_file, key_file: ours, where a certificate speaks for us.
        tls_name: what its certificate is made out to, where that is not the address.
        proxy_url: where it is reached through a proxy.
    """

    url: str
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    tls_name: str | None = None
    proxy_url: str | None = None


class ClusterAccess(Protocol):
    """Who we are to the API server."""

    @property
    def server(self) -> ApiServer: ...

    def authorization(self) -> str | None:
        """Return the header's newest value, None where a client certificate speaks for us."""
        ...

    async def renew(self) -> None:
        """Get new credentials after a refusal, where there is a way."""
        ...


class InClusterAccess:
    """The pod's own service account."""

    def __init__(self, server: ApiServer, token_path: Path) -> None:
        self.server = server
        self._token_path = token_path
        self._token = ""

    def authorization(self) -> str | None:
        try:
            token = self._token_path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            token = ""
        # While kubelet swaps the file there may be none: the last one is still good for a while.
        self._token = token or self._token
        return f"Bearer {self._token}"

    async def renew(self) -> None:
        """Do nothing: every request reads the file."""


async def load_access(kubeconfig: Path | None, context: str | None) -> ClusterAccess:
    """Return a kubeconfig's access, or that of the pod we run in where none is named. Raises NotFound or InvalidInput."""
    if kubeconfig is None:
        return load_in_cluster(os.environ)
    # The official client, which reads it, costs 20 MB: a pod's own account does without.
    from swingbus_controller.adapters.kubernetes.kubeconfig import load_kubeconfig

    return await load_kubeconfig(kubeconfig, context)


def usual_kubeconfig(environ: Mapping[str, str]) -> Path | None:
    """Return the kubeconfig that a person's tools go by where none is named; None where there is none, as in a pod.

    Raises InvalidInput where the variable KUBECONFIG names several.
    """
    named = environ.get("KUBECONFIG", "")
    if os.pathsep in named:
        raise InvalidInput(
            f"the environment variable KUBECONFIG names several files ({named}): say which one with --kubeconfig FILE",
            reason="BAD_KUBECONFIG",
        )
    usual = Path(named) if named else Path(environ.get("HOME") or "/") / ".kube" / "config"
    return usual if named or usual.is_file() else None


def load_in_cluster(environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT_FOLDER) -> ClusterAccess:
    """Return the access of the pod we run in. Raises NotFound outside of one."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
    token, authority = folder / "token", folder / "ca.crt"
    if not host or not port:
        raise _not_in_cluster(folder, "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")
    for path in (token, authority):
        if not _holds_something(path):
            raise _not_in_cluster(folder, f"{path.name} is missing, empty or may not be read")
    # An IPv6 address stands in brackets, else its last part would be the port.
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return InClusterAccess(ApiServer(url=f"https://{address}", ca_file=str(authority)), token)


def _holds_something(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


def _not_in_cluster(folder: Path, why: str) -> NotFound:
    return NotFound(
        f"no service account in {folder} ({why}); in a pod set automountServiceAccountToken, elsewhere name a kubeconfig",
        reason="NOT_IN_CLUSTER",
    )
