"""The agent's privileged child: root, two verbs, and nothing else.

    python -I -m swingbus_agent.adapters.privileged.keeper FILE RULES

FILE is the number of an inherited socket (SEQPACKET), RULES what the agent's file allows (`words.Rules`). Decides nothing but whether a
request is one of the two verbs and within the rules; whatever else comes is answered with a refusal. It keeps of root's capabilities only
what the driver asks for, reads no driver and no answer of the kubelet itself, and ends when the socket closes: it is then nobody's.
"""

from __future__ import annotations

import errno
import os
import queue
import signal
import socket
import sys
import threading

from swingbus_agent.adapters.nvml import plan
from swingbus_agent.adapters.privileged.rights import CAP_SYS_ADMIN, keep_only
from swingbus_agent.adapters.privileged.words import (
    REQUEST_MAX_BYTES,
    Malformed,
    Outcome,
    Reply,
    Request,
    Rules,
    Verb,
    parse_request,
)
from swingbus_agent.adapters.privileged.worker import NoAnswer, NotStarted, Worker

LIMITER_MODULE = "swingbus_agent.adapters.privileged.limiter"
_MOST_WAITING = 64  # limits; more than a host has GPUs
# Codes after which the driver session may go on. Else only a new one sees a GPU that was reset or a driver that was reloaded.
_SESSION_STANDS = (plan.SUCCESS, plan.INVALID_ARGUMENT, plan.NO_PERMISSION)


class Keeper:
    """Answers one agent until it hangs up."""

    def __init__(self, agent: socket.socket, rules: Rules) -> None:
        self._agent = agent
        self._rules = rules
        self._limits: queue.Queue[Request] = queue.Queue(_MOST_WAITING)
        self._limiter = Worker(LIMITER_MODULE, call_deadline_s=rules.call_deadline_s)
        self._sending = threading.Lock()

    def serve(self) -> None:
        """Answer requests; return when the agent is gone."""
        if self._rules.may_limit:
            # Apart: a GPU that hangs must not keep the kubelet's connections waiting.
            threading.Thread(target=self._set_limits, name="limits", daemon=True).start()
        while True:
            try:
                # Without room for them, files that somebody sends along are closed by the kernel.
                raw, _, flags, _ = self._agent.recvmsg(REQUEST_MAX_BYTES)
            except OSError:
                return
            if not raw:
                return
            try:
                if flags & socket.MSG_TRUNC:
                    raise Malformed(f"longer than {REQUEST_MAX_BYTES} bytes")
                request = parse_request(raw)
            except Malformed as error:
                self._say(Reply(id=0, outcome=Outcome.REFUSED, why=f"malformed: {error}"))
                continue
            self._take(request)

    def _take(self, request: Request) -> None:
        refusal = self._rules.refusal(request)
        if refusal:
            self._say(Reply(id=request.id, outcome=Outcome.REFUSED, why=refusal))
        elif request.verb is Verb.KUBELET:
            self._hand_over_kubelet(request.id)
        else:
            try:
                self._limits.put_nowait(request)
            except queue.Full:
                self._say(Reply(id=request.id, outcome=Outcome.UNAVAILABLE, why=f"{_MOST_WAITING} limits wait already"))

    def _hand_over_kubelet(self, request_id: int) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as kubelet:
            try:
                # Not blocking: a kubelet whose queue is full is told at once, and no other request waits for it.
                kubelet.connect(self._rules.kubelet_socket)
            except OSError as error:
                why = "its queue is full" if error.errno == errno.EAGAIN else error.strerror or str(error)
                self._say(Reply(id=request_id, outcome=Outcome.UNAVAILABLE, why=why))
                return
            self._say(Reply(id=request_id, outcome=Outcome.DONE), kubelet)

    def _set_limits(self) -> None:
        try:
            self._limiter.start()  # before it is wanted: opening a driver takes a while
        except NotStarted as error:
            print(f"privileged child: limits: {error}", file=sys.stderr)
        while True:
            request = self._limits.get()
            self._say(self._set_limit(request))

    def _set_limit(self, request: Request) -> Reply:
        line = {"uuid": request.uuid, "bus_id": request.bus_id, "limit_mw": request.limit_mw}
        try:
            code = self._limiter.ask(line).get("code")
        except NotStarted as error:
            return Reply(id=request.id, outcome=Outcome.UNAVAILABLE, why=str(error))
        except NoAnswer as error:
            return Reply(id=request.id, outcome=Outcome.NO_ANSWER, why=str(error))
        if not isinstance(code, int):
            self._limiter.end()
            return Reply(id=request.id, outcome=Outcome.NO_ANSWER, why="its process said no code")
        if code not in _SESSION_STANDS:
            self._limiter.end()
        outcome = Outcome.DONE if code == plan.SUCCESS else Outcome.DRIVER
        return Reply(id=request.id, outcome=outcome, code=code)

    def _say(self, reply: Reply, connection: socket.socket | None = None) -> None:
        files = [] if connection is None else [connection.fileno()]
        with self._sending:
            try:
                socket.send_fds(self._agent, [reply.encode()], files)
            except OSError:  # the agent is gone: `serve` sees it too
                return


def main() -> int:
    """Serve until the agent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # for the agent, which then hangs up
        signal.signal(number, signal.SIG_IGN)
    file, rules = int(sys.argv[1]), Rules.from_text(sys.argv[2])
    keep_only((CAP_SYS_ADMIN,) if rules.may_limit else ())
    with socket.socket(fileno=file) as agent:
        agent.set_inheritable(False)
        # Tells the agent that it may give root up now.
        socket.send_fds(agent, [Reply(id=0, outcome=Outcome.DONE).encode()], [])
        Keeper(agent, rules).serve()
    # At once, whatever a worker is doing: the kernel ends workers with us.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
