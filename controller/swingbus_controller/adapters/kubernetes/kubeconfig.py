"""Where the API server is and how we show who we are, from a kubeconfig, read by the official client's loader.

Decides that TLS is always on and verified. Refuses to know calls. Invariant: no token, key or line of a kubeconfig is in any message.

Users of a kubeconfig are of many kinds (tokens, certificates, login programs, OpenID): that is what the official client is here for. It
costs 20 MB, so this module is imported only where a kubeconfig is named. Its complaints quote the user's entry, token included; ours don't.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException
from kubernetes.aio.config.kube_config import load_kube_config

from swingbus.faults import InvalidInput, NotFound
from swingbus_controller.adapters.kubernetes.access import ApiServer, ClusterAccess


class KubeconfigAccess:
    """A user of a kubeconfig: certificate, token, or what a login program prints."""

    def __init__(self, configuration: Configuration, path: Path, context: str | None) -> None:
        self.server = ApiServer(
            url=str(configuration.host).rstrip("/"),
            ca_file=configuration.ssl_ca_cert,
            certificate_file=configuration.cert_file,
            key_file=configuration.key_file,
            tls_name=configuration.tls_server_name,
            proxy_url=configuration.proxy,
        )
        self._credentials = configuration.api_key
        self._path = path
        self._context = context

    def authorization(self) -> str | None:
        token: str | None = self._credentials.get("BearerToken")
        return token.strip() if token else None

    async def renew(self) -> None:
        fresh = await _read_kubeconfig(self._path, self._context)
        self._credentials = fresh.api_key


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
