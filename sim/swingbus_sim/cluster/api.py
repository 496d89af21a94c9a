"""The few calls to the API server that bringing a cluster up and looking at it need: plain HTTPS and JSON, one connection a call.

Not a client library: it watches nothing, retries nothing and knows no types. The controller has its own way to the API.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swingbus.faults import (
    AlreadyExists,
    Forbidden,
    InvalidInput,
    NotFound,
    OverBudget,
    SwingbusError,
    Unreachable,
    WrongState,
)
from swingbus_sim.cluster.certificates import Pair

_TIMEOUT_S = 30.0
_FAULTS: Mapping[int, type[SwingbusError]] = {
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: AlreadyExists,
    422: InvalidInput,
    429: OverBudget,
}


class Api:
    """One user's way to one API server."""

    def __init__(self, *, host: str, port: int, authority: Path, user: Pair) -> None:
        self._host = host
        self._port = port
        self._context = ssl.create_default_context(cafile=str(authority))
        self._context.load_cert_chain(user.certificate, user.key)

    def get(self, path: str) -> dict[str, Any]:
        """Read an object or a list."""
        return self._json("GET", path, None)

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create an object; an unknown field is refused, not dropped."""
        return self._json("POST", f"{path}?fieldValidation=Strict", body)

    def ensure(self, path: str, body: Mapping[str, Any]) -> None:
        """Create an object unless one of this name is there."""
        try:
            self.create(path, body)
        except AlreadyExists:
            return

    def patch(self, path: str, operations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Apply a JSON patch: all of its operations or none."""
        return self._json("PATCH", path, operations, content_type="application/json-patch+json")

    def merge(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Apply a merge patch."""
        return self._json("PATCH", path, body, content_type="application/merge-patch+json")

    def delete(self, path: str, *, grace_s: int | None = None) -> None:
        """Delete an object; with a grace of 0 a pod is force-deleted."""
        self._json("DELETE", path, {} if grace_s is None else {"gracePeriodSeconds": grace_s})

    def is_ready(self) -> bool:
        """Return whether the server says it can serve."""
        try:
            return self._send("GET", "/readyz", None)[0] == 200
        except Unreachable:
            return False

    def _json(
        self, method: str, path: str, body: object | None, *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        status, answer = self._send(method, path, body, content_type=content_type)
        if status >= 300:
            try:
                words = str(json.loads(answer).get("message", ""))
            except ValueError:
                words = answer.decode(errors="replace")
            fault = _FAULTS.get(status, WrongState)
            raise fault(f"{method} {path}: {status}: {words[:1000]}", metadata={"status": str(status)})
        result: dict[str, Any] = json.loads(answer)
        return result

    def _send(
        self, method: str, path: str, body: object | None, *, content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=_TIMEOUT_S, context=self._context)
        try:
            headers = {"Accept": "application/json", "Content-Type": content_type}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{method} https://{self._host}:{self._port}{path}: {error}") from error
        finally:
            connection.close()
