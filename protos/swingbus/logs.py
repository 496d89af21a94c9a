"""Logging set-up: structlog, one event per line, JSON unless a person is looking.

Decides format, level and what must never be written (keys, tokens, passwords). Refuses to know what programs log.
`event` is a constant noun_verb in the past tense; facts are keys with unit suffixes. Call `configure_logging` once, in `main`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from swingbus.faults import InvalidInput

REDACTED = "[redacted]"
LEVELS = ("debug", "info", "warning", "error")

_SECRET_KEY = re.compile(
    r"(^|_)(password|passwd|passphrase|secret|token|authorization|private_key|key_pem|bundle_text)$", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def redact(value: object, key: str = "") -> object:
    """Return `value` without secrets: whole values under secret-sounding keys, private keys anywhere in text."""
    if key and _SECRET_KEY.search(key) and value not in (None, ""):
        return REDACTED
    if isinstance(value, str):
        return _SECRET_VALUE.sub(REDACTED, value) if "PRIVATE KEY-----" in value else value
    if isinstance(value, bytes):
        return REDACTED if b"PRIVATE KEY-----" in value else value
    if isinstance(value, dict):
        return {k: redact(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redact(v) for v in value]
    return value


def redact_event(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact one log event (a structlog processor)."""
    for key in event:
        event[key] = redact(event[key], key)
    return event


def configure_logging(
    program: str, *, level: str = "info", stream: TextIO | None = None, as_json: bool | None = None
) -> None:
    """Set up structlog for this process.

    Args:
        program: written on every line.
        level: debug (per sample), info (state changed), warning (degraded and handled) or error (a person is needed).
        stream: where to write; standard error by default.
        as_json: None means JSON unless `stream` is a terminal.
    """
    if level.lower() not in LEVELS:
        raise InvalidInput(
            f"log level {level!r} is unknown: choose one of {', '.join(LEVELS)}",
            reason="BAD_LOG_LEVEL",
            metadata={"field": "level"},
        )
    target = stream if stream is not None else sys.stderr
    wants_json = not target.isatty() if as_json is None else as_json
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if wants_json:
        # The traceback becomes text before redaction, so that a secret in an exception's message is caught too.
        processors += [
            structlog.processors.format_exc_info,
            redact_event,
            structlog.processors.JSONRenderer(sort_keys=True),
        ]
    else:
        processors += [redact_event, structlog.dev.ConsoleRenderer(colors=target.isatty())]
    structlog.reset_defaults()
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=target),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(program=program)
    # Libraries (grpc, pymodbus) log through the standard library: only their warnings are worth an operator's time.
    logging.basicConfig(stream=target, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s", force=True)


def get_logger(**facts: object) -> FilteringBoundLogger:
    """Return a logger with facts bound to it."""
    return cast(FilteringBoundLogger, structlog.get_logger().bind(**facts) if facts else structlog.get_logger())
