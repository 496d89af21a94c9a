"""Watch the pods that are bound to nodes: list, watch, list again, in a thread of its own, over plain HTTPS and JSON.

Decides when to list anew (history gone, a broken line). Knows no kubelets: what comes in is handed over, one call each. It stands where
kubelets stand, so it is nobody's client library: one watch for all nodes instead of one each.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from swingbus.faults import NotFound, Unreachable

_LIST_LIMIT = 500
_WATCH_S = 300
_READ_TIMEOUT_S = 60.0  # bookmarks come every minute at the latest; a silent line is a dead one
_PAUSE_S = 0.5
_BOUND = "spec.nodeName!="


class ApiAddress:
    """Where an API server is and who we are to it, from a kubeconfig (JSON, as `cluster/kubeconfig.py` writes it)."""

    def __init__(self, kubeconfig: Path) -> None:
        try:
            told = json.loads(kubeconfig.read_text())
        except FileNotFoundError:
            raise NotFound(f"no kubeconfig {kubeconfig}; is the cluster up?") from None
        server = told["clusters"][0]["cluster"]
        user = told["users"][0]["user"]
        host, _, port = server["server"].removeprefix("https://").rpartition(":")
        self.host, self.port = host, int(port)
        self._context = ssl.create_default_context(cafile=server["certificate-authority"])
        self._context.load_cert_chain(user["client-certificate"], user["client-key"])

    def connect(self, timeout_s: float = _READ_TIMEOUT_S) -> http.client.HTTPSConnection:
        """Return a connection, not yet open."""
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=self._context)


class PodWatch:
    """Calls `listed` with each whole list and `changed` with each event, from its own thread, until it is closed."""

    def __init__(
        self,
        address: ApiAddress,
        *,
        path: str = "/api/v1/pods",
        field_selector: str = _BOUND,
        listed: Callable[[list[dict[str, Any]]], None],
        changed: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._address = address
        self._path = path
        self._selector = f"fieldSelector={quote(field_selector)}" if field_selector else ""
        self._listed = listed
        self._changed = changed
        self._closing = threading.Event()
        self._connection: http.client.HTTPSConnection | None = None
        self.fault = ""  # why the watch is broken now
        self.break_count = 0  # how often it broke: what happened meanwhile was seen late
        self._thread = threading.Thread(target=self._run, name="pod-watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End the watch and its thread."""
        self._closing.set()
        connection = self._connection
        if connection is not None and connection.sock is not None:
            # Beneath TLS, or the reading thread would wait for the server's farewell.
            with suppress(OSError), socket.socket(fileno=os.dup(connection.sock.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=5.0)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                version = self._list()
                while not self._closing.is_set():
                    version = self._watch(version)
            except (OSError, http.client.HTTPException, ValueError, Unreachable) as error:
                if not self._closing.is_set():
                    self.fault = f"{type(error).__name__}: {error}"
                    self.break_count += 1
                    time.sleep(_PAUSE_S)

    def _list(self) -> str:
        pods: list[dict[str, Any]] = []
        follow = ""
        connection = self._address.connect()
        try:
            while True:
                query = "&".join(part for part in (self._selector, f"limit={_LIST_LIMIT}", follow) if part)
                connection.request("GET", f"{self._path}?{query}", headers={"Accept": "application/json"})
                response = connection.getresponse()
                body = response.read()
                if response.status != 200:
                    raise Unreachable(f"list of {self._path}: {response.status}: {body[:300]!r}")
                page = json.loads(body)
                pods.extend(page["items"])
                token = page["metadata"].get("continue", "")
                if not token:
                    self._listed(pods)
                    return str(page["metadata"]["resourceVersion"])
                follow = f"continue={quote(token)}"
        finally:
            connection.close()

    def _watch(self, version: str) -> str:
        """Follow changes until the server ends the watch; return the newest version. Raises where a list is due."""
        query = "&".join(
            part
            for part in (
                "watch=1",
                self._selector,
                f"resourceVersion={version}",
                "allowWatchBookmarks=true",
                f"timeoutSeconds={_WATCH_S}",
            )
            if part
        )
        self._connection = connection = self._address.connect()
        try:
            connection.request("GET", f"{self._path}?{query}", headers={"Accept": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise Unreachable(f"watch of {self._path}: {response.status}: {response.read()[:300]!r}")
            self.fault = ""
            while line := response.readline():
                event = json.loads(line)
                kind, seen = event["type"], event["object"]
                if kind == "ERROR":
                    raise Unreachable(f"watch of {self._path}: {seen.get('message', 'no message')}")
                version = seen["metadata"]["resourceVersion"]
                if kind != "BOOKMARK":
                    self._changed(kind, seen)
            return str(version)
        finally:
            connection.close()
            self._connection = None
