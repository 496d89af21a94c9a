"""The etcd of a test cluster, asked directly: it alone can be told to forget history, which the API server does every five minutes.

Speaks its JSON gateway with its own certificate, as the API server does; nobody else is let in.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from swingbus_sim.cluster.up import Cluster

_TIMEOUT_S = 10.0
_LISTENS = "--listen-client-urls="


class Etcd:
    """One cluster's etcd, where that is on the host's own loopback (no real nodes)."""

    def __init__(self, cluster: Cluster) -> None:
        command = cluster.processes.command("etcd")
        url = next(flag.removeprefix(_LISTENS) for flag in command if flag.startswith(_LISTENS))
        self._place = urlsplit(url)
        certificates = cluster.layout.certificates
        self._context = ssl.create_default_context(cafile=str(certificates / "etcd-authority.crt"))
        self._context.load_cert_chain(certificates / "etcd-server.crt", certificates / "etcd-server.key")

    def revision(self) -> int:
        """Return the newest revision."""
        answer = self._ask("/v3/kv/range", {"key": base64.b64encode(b"/none").decode()})
        return int(answer["header"]["revision"])

    def compact(self) -> int:
        """Forget all history before now, and return the revision up to which."""
        revision = self.revision()
        self._ask("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def _ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPSConnection(
            str(self._place.hostname), self._place.port, timeout=_TIMEOUT_S, context=self._context
        )
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        assert response.status == 200, (path, response.status, text)
        answer: dict[str, Any] = json.loads(text)
        return answer
