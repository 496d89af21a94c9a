"""One run of swingctl: the connection, the way to print, and how a call is made.

Decides deadlines, paging, progress and which site is meant; refuses to know nouns. Every call has a deadline; gRPC errors leave as faults.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

import grpc.aio
from google.protobuf.message import Message

from swingbus.bundle import Bundle
from swingbus.capacity.v1alpha.capacity_service_pb2_grpc import CapacityServiceStub
from swingbus.clock import Clock
from swingbus.fleet.v1alpha import fleet_service_pb2 as fleet_pb
from swingbus.fleet.v1alpha.fleet_service_pb2_grpc import FleetServiceStub
from swingbus.market.v1alpha.market_service_pb2_grpc import MarketServiceStub
from swingbus.names import SiteName
from swingbus.rpc.channel import open_channel
from swingbus.rpc.status import faults_raised
from swingctl.render import Column, print_json, render_facts, render_table, short_name, to_json

if TYPE_CHECKING:
    from swingbus.capacity.v1alpha.capacity_service_pb2_grpc import CapacityServiceAsyncStub
    from swingbus.fleet.v1alpha.fleet_service_pb2_grpc import FleetServiceAsyncStub
    from swingbus.market.v1alpha.market_service_pb2_grpc import MarketServiceAsyncStub

PROGRESS_AFTER_S = 2.0
PAGE_SIZE = 500

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class UsageError(Exception):
    """The command line cannot be carried out as written: exit code 2."""


class Terminal(Protocol):
    """What a run needs of the world outside: streams and a question."""

    out: TextIO
    err: TextIO

    @property
    def width(self) -> int | None: ...

    @property
    def is_interactive(self) -> bool: ...

    def ask(self, question: str) -> str: ...


class SystemTerminal:
    """Standard streams of this process."""

    def __init__(self) -> None:
        self.out: TextIO = sys.stdout
        self.err: TextIO = sys.stderr

    @property
    def width(self) -> int | None:
        """Columns of the terminal; None where the output goes to a file or pipe."""
        return shutil.get_terminal_size().columns if self.out.isatty() else None

    @property
    def is_interactive(self) -> bool:
        return sys.stdin.isatty() and self.out.isatty()

    def ask(self, question: str) -> str:
        return input(question)


@dataclass(slots=True, kw_only=True)
class Session:
    """What every command gets."""

    bundle: Bundle
    endpoint: str
    channel: grpc.aio.Channel
    terminal: Terminal
    clock: Clock
    timeout_s: float
    as_json: bool
    write_request_id: str | None = None  # of the newest write, for advice after a time-out
    _site: str | None = field(default=None)

    @property
    def fleet(self) -> FleetServiceAsyncStub:
        return FleetServiceStub(self.channel)

    @property
    def capacity(self) -> CapacityServiceAsyncStub:
        return CapacityServiceStub(self.channel)

    @property
    def market(self) -> MarketServiceAsyncStub:
        return MarketServiceStub(self.channel)

    async def call(self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        """Make one unary call under the run's deadline; tell that it is waiting when it takes long."""
        async with self._progress():
            with faults_raised(self.endpoint):
                return await method(request, timeout=self.timeout_s)

    async def pages(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        at_most: int | None = None,
    ) -> Response:
        """Call a List method until its last page (or `at_most` items) and return everything as one response."""
        asked: Any = request
        whole: Any = None
        while True:
            have = len(_items(whole)) if whole is not None else 0
            asked.page_size = PAGE_SIZE if at_most is None else min(PAGE_SIZE, at_most - have)
            page: Any = await self.call(method, request)
            if whole is None:
                whole = page
            else:
                _items(whole).extend(_items(page))
            asked.page_token = page.next_page_token
            if not asked.page_token or (at_most is not None and len(_items(whole)) >= at_most):
                whole.next_page_token = ""
                answer: Response = whole
                return answer

    async def site(self, given: str | None) -> str:
        """Return the name of the site that is meant: the given one, or the only one there is."""
        if given is not None:
            return given if given.startswith("sites/") else str(SiteName(given))
        if self._site is None:
            answer = await self.pages(self.fleet.ListSites, fleet_pb.ListSitesRequest())
            names = [short_name(site.name) for site in answer.sites]
            if len(names) != 1:
                raise UsageError(
                    f"say which site is meant with --site: this controller serves {', '.join(names)}"
                    if names
                    else "this controller serves no site yet: its site file names none"
                )
            self._site = str(SiteName(names[0]))
        return self._site

    def show_list(self, answer: Message, columns: Sequence[Column], rows: Sequence[Sequence[str]], empty: str) -> None:
        """Print a List response."""
        if self.as_json:
            self.show_json(answer)
        elif rows:
            self.line(render_table(columns, rows, self.terminal.width))
        else:
            self.line(empty)

    def show_facts(self, answer: Message, facts: Sequence[tuple[str, str]]) -> None:
        """Print a Get response."""
        if self.as_json:
            self.show_json(answer)
        else:
            self.line(render_facts(facts, self.terminal.width))

    def show_json(self, answer: Message) -> None:
        """Print any response as JSON, without the page token."""
        table = to_json(answer)
        table.pop("next_page_token", None)
        print_json(table, self.terminal.out)

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Print a further table of a human answer."""
        if rows:
            self.line(render_table(columns, rows, self.terminal.width))

    def line(self, text: str = "") -> None:
        """Print a line of the answer."""
        self.terminal.out.write(text + "\n")

    def note(self, text: str) -> None:
        """Print a line that is no part of the answer."""
        self.terminal.err.write(text + "\n")
        self.terminal.err.flush()

    @asynccontextmanager
    async def _progress(self) -> AsyncIterator[None]:
        """Say after two seconds that we are waiting, and for how long at most."""
        loop = asyncio.get_running_loop()
        text = f"waiting for {self.endpoint}, {self.timeout_s:g} s at most ..."
        timer = loop.call_later(PROGRESS_AFTER_S, self.note, text)
        try:
            yield
        finally:
            timer.cancel()


def _items(answer: Any) -> Any:
    """Return the one repeated field of a List response."""
    fields = [f.name for f in answer.DESCRIPTOR.fields if f.is_repeated]
    return getattr(answer, fields[0])


def open_session(
    bundle: Bundle, *, endpoint: str | None, terminal: Terminal, clock: Clock, timeout_s: float, as_json: bool
) -> Session:
    """Return a session; it connects at its first call. Close its channel at the end."""
    return Session(
        bundle=bundle,
        endpoint=endpoint or bundle.endpoint,
        channel=open_channel(bundle, endpoint=endpoint),
        terminal=terminal,
        clock=clock,
        timeout_s=timeout_s,
        as_json=as_json,
    )
