"""What the toy inference server answers, by a clock of the test's own."""

from __future__ import annotations

import pytest

from swingbus_sim.toys.serving import Serving, format_answer


def make_serving(**changes: float) -> Serving:
    """Return a server whose weights are loaded at 10 s, with two slots of 100 tokens a second."""
    return Serving(**{"ready_at_s": 10.0, "level": 0.0, "slots": 2, "tokens_per_s": 100.0, **changes})  # type: ignore[arg-type]  # mixed fields


def test_loading_server_is_alive_but_not_ready() -> None:
    """It takes nothing before its weights are there, and says how long it still takes."""
    serving = make_serving()
    assert serving.answer("GET", "/healthz", 0.0).status == 200
    loading = serving.answer("GET", "/readyz", 4.0)
    assert (loading.status, loading.body) == (503, {"status": "loading", "left_s": 6.0})
    assert serving.answer("GET", "/generate", 9.9).status == 503 and serving.running == 0
    assert serving.answer("GET", "/readyz", 10.0).status == 200


def test_generation_takes_a_slot_and_its_time() -> None:
    """Two at a time; the third is refused at once, and is taken when one has finished."""
    serving = make_serving()
    assert [serving.answer("POST", "/generate?tokens=50", 10.0).work_s for _ in range(2)] == [0.5, 0.5]
    refused = serving.answer("GET", "/generate", 10.0)
    assert (refused.status, refused.work_s, serving.running) == (429, 0.0, 2)
    serving.finish()
    assert serving.answer("GET", "/generate", 10.0).status == 200
    assert (serving.running, serving.served, serving.refused) == (2, 1, 1)


def test_gpus_are_as_busy_as_level_or_requests_make_them() -> None:
    """Whichever is more; loading keeps them a little busy, and draining only what still runs."""
    serving = make_serving(level=0.4)
    assert 0 < serving.load_ratio(0.0) < 0.4
    assert serving.load_ratio(10.0) == 0.4
    serving.answer("GET", "/generate", 10.0)
    assert serving.load_ratio(10.0) == 0.5
    assert serving.answer("POST", "/load?level=0.9", 10.0).status == 200
    assert serving.load_ratio(10.0) == 0.9
    serving.is_draining = True
    assert serving.load_ratio(10.0) == 0.5
    serving.finish()
    assert serving.load_ratio(10.0) == 0.0


def test_draining_server_takes_nothing_new() -> None:
    """It is alive, not ready, and sends callers elsewhere."""
    serving = make_serving()
    serving.is_draining = True
    assert serving.answer("GET", "/healthz", 20.0).status == 200
    for target in ("/readyz", "/generate"):
        answer = serving.answer("GET", target, 20.0)
        assert (answer.status, answer.body) == (503, {"status": "draining"})
    assert serving.running == 0


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/generate?tokens=0", 400),
        ("GET", "/generate?tokens=5000", 400),
        ("GET", "/generate?tokens=many", 400),
        ("POST", "/load?level=1.5", 400),
        ("POST", "/load?level=nan", 400),
        ("POST", "/load", 400),
        ("PUT", "/load?level=1", 404),
        ("GET", "/", 404),
    ],
)
def test_wrong_request_changes_nothing(method: str, target: str, status: int) -> None:
    """Each is told what can be asked."""
    serving = make_serving()
    answer = serving.answer(method, target, 20.0)
    assert answer.status == status and "/" in str(answer.body["error"])
    assert (serving.running, serving.level) == (0, 0.0)


def test_answer_is_http_that_ends_its_connection() -> None:
    """Length, close, and when to come again where it was refused."""
    serving = make_serving()
    text = format_answer(serving.answer("GET", "/readyz", 0.0)).decode()
    head, _, body = text.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503 ") and f"Content-Length: {len(body)}" in head
    assert "Retry-After: 1" in head and "Connection: close" in head
