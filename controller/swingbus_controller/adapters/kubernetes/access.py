"""Where the API server is and how we show who we are: in-cluster files or a kubeconfig, read by the official client's loaders.

Decides that TLS is always on and verified. Refuses to know calls. Invariant: no token, key or line of a kubeconfig is in any message.

Two things of the loaders are replaced. Theirs re-reads a rotated token by the wall clock, which jumps, and keeps its line end; ours reads
the file for every request (some 20 us), so that a rotation cannot be missed. And their complaints quote the user's entry, token included.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException
from kubernetes.aio.config.incluster_config import InClusterConfigLoader
from kubernetes.aio.config.kube_config import load_kube_config

from swingbus.faults import InvalidInput, NotFound

SERVICE_ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ClusterAccess(Protocol):
    """Who we are to the API server."""

    @property
    def configuration(self) -> Configuration: ...

    def authorization(self) -> str | None:
        """Return the header's newest value, None where a client certificate speaks for us."""
        ...

    async def renew(self) -> None:
        """Get new credentials after a refusal, where there is a way."""
        ...


class InClusterAccess:
    """The pod's own service account."""

    def __init__(self, configuration: Configuration, token_path: Path) -> None:
        self.configuration = configuration
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


class KubeconfigAccess:
    """A user of a kubeconfig: certificate, token, or what a login program prints."""

    def __init__(self, configuration: Configuration, path: Path, context: str | None) -> None:
        self.configuration = configuration
        self._path = path
        self._context = context

    def authorization(self) -> str | None:
        token: str | None = self.configuration.api_key.get("BearerToken")
        return token.strip() if token else None

    async def renew(self) -> None:
        fresh = await _read_kubeconfig(self._path, self._context)
        self.configuration.api_key = fresh.api_key


def load_in_cluster(environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT_FOLDER) -> ClusterAccess:
    """Return the access of the pod we run in. Raises NotFound outside of one."""
    configuration = Configuration()
    loader = InClusterConfigLoader(
        token_filename=str(folder / "token"),
        cert_filename=str(folder / "ca.crt"),
        try_refresh_token=False,
        environ=environ,
    )
    try:
        loader.load_and_set(configuration)
    except (ConfigException, OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"no service account in {folder} ({type(error).__name__}); in a pod set automountServiceAccountToken, "
            "elsewhere name a kubeconfig",
            reason="NOT_IN_CLUSTER",
        ) from None
    _require_tls(configuration, str(folder))
    return InClusterAccess(configuration, folder / "token")


async def load_kubeconfig(path: Path, context: str | None = None) -> ClusterAccess:
    """Return the access of a kubeconfig's context, the current one if none is named.

    Client keys that are written in the file itself are copied by the loader to temporary files, which only we may read, until we end.
    """
    if not path.is_file():  # noqa: ASYNC240 - once at the start
        raise NotFound(f"no kubeconfig {path}; name an existing file", reason="NO_KUBECONFIG")
    configuration = await _read_kubeconfig(path, context)
    _require_tls(configuration, str(path))
    return KubeconfigAccess(configuration, path, context)


async def _read_kubeconfig(path: Path, context: str | None) -> Configuration:
    configuration = Configuration()
    try:
        # persist_config would write the file as soon as it is read.
        await load_kube_config(
            config_file=str(path), context=context, client_configuration=configuration, persist_config=False
        )
    except (ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(
            f"kubeconfig {path} cannot be used with {f'context {context!r}' if context else 'its current context'} "
            f"({type(error).__name__}); check it with: kubectl config view --kubeconfig {path}",
            reason="BAD_KUBECONFIG",
        ) from None  # their messages quote the user's entry
    return configuration


def _require_tls(configuration: Configuration, source: str) -> None:
    if not str(configuration.host).startswith("https://"):
        raise InvalidInput(
            f"{source} names an API server without TLS; give an https address, a token is never sent in the clear",
            reason="NO_TLS",
        )
    if not configuration.verify_ssl:
        raise InvalidInput(
            f"{source} says insecure-skip-tls-verify; give the cluster's certificate authority instead",
            reason="NO_TLS",
        )
