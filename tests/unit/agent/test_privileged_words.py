"""What the privileged child may be asked: exactly two verbs, every fact of its type, and only what the agent's file allows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swingbus_agent.adapters.privileged.words import (
    REPLY_MAX_BYTES,
    REQUEST_MAX_BYTES,
    Malformed,
    Outcome,
    Reply,
    Request,
    Rules,
    Verb,
    parse_reply,
    parse_request,
)

UUID = "GPU-00000001-0000-4000-8000-000000000000"
LIMIT = Request(id=7, verb=Verb.LIMIT, uuid=UUID, bus_id="00000000:01:00.0", limit_mw=300_000)
FACTS: dict[str, Any] = {"id": 7, "verb": "limit", "uuid": UUID, "bus_id": "00000000:01:00.0", "limit_mw": 300_000}
OTHERS = [
    {"verb": "run"},
    {"verb": ["limit"]},
    {"verb": None},
    {"id": 0},
    {"id": -1},
    {"id": True},
    {"id": 1.0},
    {"id": 2**53 + 1},
    {"uuid": "GPU-../../x"},
    {"uuid": f"{UUID}\n"},
    {"uuid": 5},
    {"uuid": "MIG-1"},
    {"bus_id": "01:00.0"},
    {"bus_id": "00000000:01:00.0;"},
    {"bus_id": "0"},
    {"limit_mw": 0},
    {"limit_mw": -300_000},
    {"limit_mw": True},
    {"limit_mw": "300000"},
    {"limit_mw": 3e5},
    {"limit_mw": 10**12},
    {"more": 1},
    {"verb": "kubelet"},
]


def test_both_verbs_survive_the_wire() -> None:
    """What was asked arrives, whole and within the bound."""
    for request in (LIMIT, Request(id=1, verb=Verb.KUBELET)):
        assert parse_request(request.encode()) == request
    longest = Request(id=2**53, verb=Verb.LIMIT, uuid="GPU-" + "a" * 64, bus_id="00000000:FF:1F.7", limit_mw=10**8)
    assert parse_request(longest.encode()) == longest and len(longest.encode()) <= REQUEST_MAX_BYTES


@pytest.mark.parametrize("change", OTHERS, ids=str)
def test_request_that_is_not_exactly_one_is_malformed(change: dict[str, Any]) -> None:
    """Another verb, a type, a bound, a fact too many."""
    assert parse_request(json.dumps(FACTS).encode()) == LIMIT
    with pytest.raises(Malformed):
        parse_request(json.dumps({**FACTS, **change}).encode())


@pytest.mark.parametrize("missing", sorted(FACTS))
def test_request_that_lacks_a_fact_is_malformed(missing: str) -> None:
    """No default is made up."""
    with pytest.raises(Malformed):
        parse_request(json.dumps({name: value for name, value in FACTS.items() if name != missing}).encode())


@given(st.binary(max_size=REQUEST_MAX_BYTES * 2))
def test_any_bytes_are_a_request_or_malformed(raw: bytes) -> None:
    """Nothing else can come out, whatever comes in."""
    try:
        request = parse_request(raw)
    except Malformed:
        return
    assert parse_request(request.encode()) == request


def test_deep_nesting_is_malformed() -> None:
    """A parser that gives up is no crash."""
    with pytest.raises(Malformed):
        parse_request(b"[" * REQUEST_MAX_BYTES)


@given(st.text(max_size=5000))
def test_reply_fits_its_bound_whatever_the_reason_says(why: str) -> None:
    """A long reason is cut, for it is for a person; the outcome arrives."""
    why = why.encode("utf-8", "ignore").decode()
    reply = Reply(id=3, outcome=Outcome.UNAVAILABLE, why=why, code=5)
    raw = reply.encode()
    assert len(raw) <= REPLY_MAX_BYTES
    told = parse_reply(raw)
    assert (told.id, told.outcome, told.code) == (3, Outcome.UNAVAILABLE, 5)
    assert why.startswith(told.why)


def test_rules_allow_only_what_the_file_names() -> None:
    """GPUs of its banks, limits only with writes, the kubelet only for banks that run pods."""
    kubelet = Request(id=1, verb=Verb.KUBELET)
    listed = Rules(may_limit=True, gpus=(UUID,), kubelet_socket="")
    assert listed.refusal(LIMIT) == ""
    assert "runs pods" in listed.refusal(kubelet)
    assert "in no bank" in Rules(may_limit=True, gpus=("GPU-other",), kubelet_socket="").refusal(LIMIT)
    everything = Rules(may_limit=True, gpus=(), kubelet_socket="/k.sock")
    assert everything.refusal(LIMIT) == everything.refusal(kubelet) == ""
    looking = Rules(may_limit=False, gpus=(), kubelet_socket="/k.sock")
    assert "writes = false" in looking.refusal(LIMIT) and looking.refusal(kubelet) == ""
    assert Rules.from_text(listed.to_text()) == listed
