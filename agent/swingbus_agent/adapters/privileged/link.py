"""The agent's end of the pair of sockets: asks the privileged child, each time within a deadline.

Decides which answer belongs to which question and when the child is gone. Knows nothing of GPUs and pods. Invariants: an answer that
nobody waits for any more changes nothing, and a connection that came with it is closed; after the child is gone every question is
answered at once.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from swingbus.faults import Unreachable
from swingbus_agent.adapters.privileged.words import (
    REPLY_MAX_BYTES,
    Malformed,
    Outcome,
    Reply,
    Request,
    Rules,
    Verb,
    parse_reply,
)

KEEPER_MODULE = "swingbus_agent.adapters.privileged.keeper"
_START_DEADLINE_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back; `connection` is the kubelet's, and whoever gets the answer has to close it."""

    reply: Reply
    connection: socket.socket | None = None


class KeeperLink:
    """One living privileged child."""

    def __init__(self, end: socket.socket, process: subprocess.Popen[bytes], rules: Rules) -> None:
        end.setblocking(False)
        self._end = end
        self._process = process
        self._rules = rules
        self._next_id = 1
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._is_reading = False
        self._is_gone = False
        self._gone = asyncio.Event()

    @property
    def pid(self) -> int:
        """The child's process number."""
        return self._process.pid

    @property
    def rules(self) -> Rules:
        """What the child allows."""
        return self._rules

    async def set_limit(self, uuid: str, bus_id: str, limit_mw: int) -> Reply:
        """Ask for a power limit."""
        # The child's own deadlines come first: starting the driver's worker, the call, and a limit of another GPU before this one.
        deadline_s = 5.0 + 3 * self._rules.call_deadline_s
        request = Request(id=self._take_id(), verb=Verb.LIMIT, uuid=uuid, bus_id=bus_id, limit_mw=limit_mw)
        return (await self._ask(request, deadline_s)).reply

    async def connect_kubelet(self, deadline_s: float) -> Answer:
        """Ask for a connection to the kubelet's socket."""
        return await self._ask(Request(id=self._take_id(), verb=Verb.KUBELET), deadline_s)

    async def wait_gone(self) -> str:
        """Return how the child ended, once it has."""
        self._read()
        await self._gone.wait()
        for _ in range(20):  # the kernel closes files before it tells the end
            code = self._process.poll()
            if code is not None:
                break
            await asyncio.sleep(0.05)
        if code is None:
            return "closed its socket"
        return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"

    def close(self) -> None:
        """Hang up: the child ends."""
        self._leave()
        self._end.close()
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return  # it is root and we are not: its end of the pair is closed, that must do

    def _take_id(self) -> int:
        request_id, self._next_id = self._next_id, self._next_id + 1
        return request_id

    async def _ask(self, request: Request, deadline_s: float) -> Answer:
        self._read()
        if self._is_gone:
            return _failed(
                request, Outcome.UNAVAILABLE, "the privileged child is gone; the agent has to be started again"
            )
        answer = self._waiting[request.id] = asyncio.get_running_loop().create_future()
        result: Answer | None = None
        try:
            self._end.send(request.encode())
            async with asyncio.timeout(deadline_s):
                result = await answer
            return result
        except TimeoutError:
            return _failed(request, Outcome.NO_ANSWER, f"the privileged child did not answer within {deadline_s:g} s")
        except OSError as error:  # its queue is full, or it is gone
            return _failed(request, Outcome.UNAVAILABLE, f"the privileged child cannot be asked: {error}")
        finally:
            del self._waiting[request.id]
            if result is None and answer.done() and not answer.cancelled():
                late = answer.result().connection  # it came in the very moment in which we gave up
                if late is not None:
                    late.close()

    def _read(self) -> None:
        if not self._is_reading and not self._is_gone:
            asyncio.get_running_loop().add_reader(self._end.fileno(), self._take)
            self._is_reading = True

    def _take(self) -> None:
        try:
            raw, files, flags, _ = socket.recv_fds(self._end, REPLY_MAX_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            raw, files, flags = b"", [], 0
        connection = socket.socket(fileno=files[0]) if files else None
        if not raw:
            self._leave()
            return
        try:
            if flags & socket.MSG_TRUNC:
                raise Malformed("too long an answer")
            reply = parse_reply(raw)
        except Malformed:  # ours is of one build with us: whoever waits sees its deadline pass
            reply = Reply(id=0, outcome=Outcome.REFUSED)
        waiting = self._waiting.get(reply.id)
        if waiting is None or waiting.done():
            if connection is not None:
                connection.close()
            return
        waiting.set_result(Answer(reply=reply, connection=connection))

    def _leave(self) -> None:
        if self._is_reading:
            asyncio.get_running_loop().remove_reader(self._end.fileno())
            self._is_reading = False
        self._is_gone = True
        self._gone.set()
        for request_id, waiting in self._waiting.items():
            if not waiting.done():
                why = "the privileged child ended before it answered"
                waiting.set_result(Answer(reply=Reply(id=request_id, outcome=Outcome.NO_ANSWER, why=why)))


def _failed(request: Request, outcome: Outcome, why: str) -> Answer:
    return Answer(reply=Reply(id=request.id, outcome=outcome, why=why))


def start_keeper(rules: Rules, *, environment: Mapping[str, str] | None = None) -> KeeperLink:
    """Start the child with the rights of this process and wait until it is there; its environment is this one's by default.

    Raises:
        Unreachable: it does not begin.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            # Isolated: no module from a working folder or from PYTHONPATH is ever run as root.
            [sys.executable, "-I", "-m", KEEPER_MODULE, str(theirs.fileno()), rules.to_text()],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            cwd="/",
            env=environment,
        )
    ours.settimeout(_START_DEADLINE_S)
    try:
        is_there = parse_reply(ours.recv(REPLY_MAX_BYTES)).outcome is Outcome.DONE
    except (OSError, Malformed):
        is_there = False
    if not is_there:
        ours.close()
        process.kill()
        code = process.wait()
        raise Unreachable(
            f"the privileged child does not begin (it ended with {code}); its own message is above",
            reason="PRIVILEGED_CHILD_FAILED",
        )
    return KeeperLink(ours, process, rules)
