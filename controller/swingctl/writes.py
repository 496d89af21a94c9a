"""How a write happens: checked first, shown, confirmed, sent once under one request id.

Without `--yes` a person at a terminal sees what the controller answers to the same request with `validate_only` and is asked; without a
terminal nothing is sent. `--dry-run` stops after the check.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from swingbus.capacity.v1alpha.capacity_service_pb2 import WriteOptions
from swingctl.session import Session, UsageError

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Declined(Exception):
    """The person at the terminal said no: exit code 1, nothing was changed."""


async def write(
    session: Session,
    args: argparse.Namespace,
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    *,
    question: str,
    preview: Callable[[Response], None],
) -> Response | None:
    """Carry out one write; return its answer, or None after a dry run (whose answer was shown).

    Args:
        session: the run.
        args: with the options of `add_write`.
        method: the stub's method.
        request: complete but for its write options.
        question: asked at a terminal, without its question mark.
        preview: shows the answer to the check.
    """
    may_ask = session.terminal.is_interactive and not session.as_json
    if not args.yes and not args.dry_run and not may_ask:
        raise UsageError("this changes the site: say --yes, or --dry-run to see what it would do")
    request_id = args.request_id or str(uuid.uuid4())
    reason = args.reason or f"swingctl {args.noun} {getattr(args, 'verb', '')}".strip()
    if args.dry_run or not args.yes:
        # The check has an id of its own: a repeat of it must never be taken for the write.
        _set_options(request, str(uuid.uuid4()), reason, validate_only=True)
        checked = await session.call(method, request)
        if session.as_json:
            session.show_json(checked)
        else:
            preview(checked)
        if args.dry_run:
            session.note("dry run: the controller would accept this; nothing was changed")
            return None
        if session.terminal.ask(f"{question}? [y/N] ").strip().lower() not in ("y", "yes"):
            raise Declined
    _set_options(request, request_id, reason, validate_only=False)
    session.write_request_id = request_id
    answer = await session.call(method, request)
    session.write_request_id = None
    return answer


def _set_options(request: Any, request_id: str, reason: str, *, validate_only: bool) -> None:
    if "options" in request.DESCRIPTOR.fields_by_name:
        request.options.CopyFrom(WriteOptions(request_id=request_id, reason=reason, validate_only=validate_only))
    else:  # MarketService carries the same three beside its values
        request.request_id, request.reason, request.validate_only = request_id, reason, validate_only
