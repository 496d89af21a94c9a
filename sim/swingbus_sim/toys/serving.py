"""What the toy inference server answers: pure, but for the clock that is handed in.

Decides readiness, how many requests run at once, and how busy the GPUs are. Invariants: never more than `slots` generations at a time
(the next one is refused, not queued); once it drains it takes no new one and is not ready; its GPUs are as busy as the level that somebody
set or as its running generations make them, whichever is more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

_LOADING_RATIO = 0.15  # copying weights keeps a GPU a little busy
_TOKENS_DEFAULT, _TOKENS_MAX = 64, 4096


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; `work_s` says how long a generation takes before it is sent."""

    status: int
    body: dict[str, object]
    work_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class Serving:
    """The server's state.

    Args:
        ready_at_s: when the weights are loaded, by the clock of `answer`.
        level: how busy the GPUs are kept whatever is asked, 0 to 1.
        slots: generations at the same time.
        tokens_per_s: of one generation.
    """

    ready_at_s: float
    level: float
    slots: int
    tokens_per_s: float
    running: int = 0
    served: int = 0
    refused: int = 0
    is_draining: bool = False

    def is_ready(self, now_s: float) -> bool:
        """Tell whether it takes requests."""
        return now_s >= self.ready_at_s and not self.is_draining

    def load_ratio(self, now_s: float) -> float:
        """Return how busy its GPUs are now, 0 to 1."""
        if now_s < self.ready_at_s:
            return _LOADING_RATIO
        return max(0.0 if self.is_draining else self.level, self.running / self.slots)

    def answer(self, method: str, target: str, now_s: float) -> Answer:
        """Answer one request; an answer with `work_s` has taken a slot, which `finish` gives back."""
        url = urlsplit(target)
        match method, url.path:
            case "GET", "/healthz":
                return Answer(200, {"status": "alive"})
            case "GET", "/readyz":
                return self._readiness(now_s)
            case "GET", "/load":
                return Answer(200, {"level": self.level, "running": self.running, "load_ratio": self.load_ratio(now_s)})
            case "POST", "/load":
                return self._set_level(url.query)
            case "GET" | "POST", "/generate":
                return self._generate(url.query, now_s)
            case _:
                known = "/healthz, /readyz, /generate?tokens=N, GET and POST /load?level=R"
                return Answer(404, {"error": f"no {method} {url.path}: there are {known}"})

    def finish(self) -> None:
        """Give a generation's slot back."""
        self.running -= 1
        self.served += 1

    def _readiness(self, now_s: float) -> Answer:
        if self.is_draining:
            return Answer(503, {"status": "draining"})
        if now_s < self.ready_at_s:
            return Answer(503, {"status": "loading", "left_s": round(self.ready_at_s - now_s, 2)})
        return Answer(200, {"status": "ready"})

    def _set_level(self, query: str) -> Answer:
        level = _number(query, "level")
        if level is None or not 0.0 <= level <= 1.0:
            return Answer(400, {"error": "say POST /load?level=R with R from 0 to 1"})
        self.level = level
        return Answer(200, {"level": level})

    def _generate(self, query: str, now_s: float) -> Answer:
        tokens = _number(query, "tokens") if "tokens" in query else _TOKENS_DEFAULT
        if tokens is None or not 1 <= tokens <= _TOKENS_MAX:
            return Answer(400, {"error": f"say /generate?tokens=N with N from 1 to {_TOKENS_MAX}"})
        if not self.is_ready(now_s):
            return self._readiness(now_s)
        if self.running >= self.slots:
            self.refused += 1
            return Answer(429, {"error": f"all {self.slots} slots are busy; ask again"})
        self.running += 1
        return Answer(200, {"tokens": int(tokens)}, work_s=tokens / self.tokens_per_s)


def format_answer(answer: Answer) -> bytes:
    """Return an answer as HTTP/1.1 on a connection that closes after it."""
    body = json.dumps(answer.body).encode() + b"\n"
    head = f"HTTP/1.1 {answer.status} -\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    again = "Retry-After: 1\r\n" if answer.status in (429, 503) else ""
    return f"{head}{again}Connection: close\r\n\r\n".encode() + body


def _number(query: str, name: str) -> float | None:
    try:
        return float(parse_qs(query)[name][0])
    except (KeyError, ValueError):
        return None
