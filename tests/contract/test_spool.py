"""One suite for every `Spool`: the fake in memory and the one on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from swingbus.link.v1alpha import link_pb2
from swingbus_agent.adapters.spool import SqliteSpool
from swingbus_agent.codec import ProtoRoundCodec
from swingbus_agent.domain.readings import AgentEvent, Inventory, Round
from swingbus_agent.domain.spool_policy import Acknowledged, Bounds
from swingbus_agent.ports.spool import Spool, SpooledBatch, SpoolState

INVENTORY = Inventory(
    version="1", hostname="h", banks=(), meters=(), host_fields=("load_1m",), unsupported=(), writes_enabled=False
)
CODEC = ProtoRoundCodec()


class MemorySpool:
    """Keeps batches in memory; never thins, drops the oldest when there are more than `most`."""

    def __init__(self, most: int = 1 << 30) -> None:
        self._batches: dict[int, bytes] = {}
        self._newest = 0
        self._most = most
        self._uid = 1
        self._dropped = self._rejected = 0

    async def announce(self, inventory: Inventory) -> str:
        return "only"

    async def append(self, round_: Round) -> int:
        self._newest += 1
        self._batches[self._newest] = CODEC.encode_round(round_, self._newest, self._newest)
        return self._newest

    async def state(self) -> SpoolState:
        return SpoolState(
            spool_uid=f"uid-{self._uid}",
            oldest_sequence=min(self._batches, default=0),
            newest_sequence=self._newest,
            batch_count=len(self._batches),
            size_bytes=sum(map(len, self._batches.values())),
            thinned_count=0,
            dropped_count=self._dropped,
            rejected_count=self._rejected,
        )

    async def read(self, after_sequence: int, before_sequence: int, limit: int) -> Sequence[SpooledBatch]:
        found = sorted(s for s in self._batches if after_sequence < s < before_sequence)[:limit]
        return [
            SpooledBatch(sequence=s, first_sequence=s, inventory_id="only", payload=self._batches[s]) for s in found
        ]

    async def acknowledge(self, acknowledged: Acknowledged, rejected: Collection[int] = ()) -> None:
        self._rejected += sum(s in self._batches for s in rejected)
        self._batches = {s: p for s, p in self._batches.items() if not acknowledged.covers(s, s) and s not in rejected}

    async def relieve(self, now_unix_s: float, busy: Collection[int]) -> tuple[int, int]:
        over = [s for s in sorted(self._batches) if s not in busy][: max(0, len(self._batches) - self._most)]
        for sequence in over:
            del self._batches[sequence]
        self._dropped += len(over)
        return 0, len(over)

    async def restart(self) -> None:
        self._batches, self._newest, self._uid = {}, 0, self._uid + 1

    async def aclose(self) -> None:
        return


def make_round(at_s: float = 0.0, events: tuple[AgentEvent, ...] = ()) -> Round:
    """Return a round of the host alone."""
    return Round(
        sample_unix_s=1e9 + at_s, sample_boottime_ns=int(at_s * 1e9), boot_id="boot", host_values=(at_s,), events=events
    )


async def opened(folder: Path, *, max_bytes: int = 1 << 20, max_age_s: float = 1e6) -> SqliteSpool:
    """Return a spool on disk."""
    spool = SqliteSpool(folder, codec=CODEC, bounds=Bounds(max_bytes=max_bytes, max_age_s=max_age_s))
    assert await spool.open() == ""
    await spool.announce(INVENTORY)
    return spool


@pytest.fixture(params=["memory", "sqlite"])
async def spool(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Spool]:
    """Every implementation in turn."""
    made: Spool = MemorySpool() if request.param == "memory" else await opened(tmp_path)
    yield made
    await made.aclose()


async def test_sequences_start_at_one_and_never_come_again(spool: Spool) -> None:
    """Also after everything was acknowledged."""
    assert [await spool.append(make_round(n)) for n in range(3)] == [1, 2, 3]
    await spool.acknowledge(Acknowledged(up_to=3))
    assert await spool.append(make_round(9)) == 4
    state = await spool.state()
    assert (state.oldest_sequence, state.newest_sequence, state.batch_count) == (4, 4, 1)


async def test_read_returns_what_was_stored_in_order(spool: Spool) -> None:
    """Between two sequences, both excluded, at most the limit."""
    for n in range(6):
        await spool.append(make_round(n))
    found = await spool.read(1, 6, 3)
    assert [batch.sequence for batch in found] == [2, 3, 4]
    assert CODEC.decode_round(found[0].payload) == make_round(1)


async def test_acknowledged_ranges_are_deleted_and_the_gap_stays(spool: Spool) -> None:
    """Only what the controller says it holds goes; a refused batch is counted."""
    for n in range(8):
        await spool.append(make_round(n))
    await spool.acknowledge(Acknowledged(up_to=2, ranges=((5, 6),)), rejected=[8])
    assert [batch.sequence for batch in await spool.read(0, 99, 99)] == [3, 4, 7]
    state = await spool.state()
    assert (state.rejected_count, state.oldest_sequence, state.newest_sequence) == (1, 3, 8)


async def test_restart_begins_a_new_identity(spool: Spool) -> None:
    """A new spool counts from 1."""
    await spool.append(make_round())
    before = (await spool.state()).spool_uid
    await spool.restart()
    assert (await spool.state()).spool_uid != before
    assert await spool.append(make_round()) == 1


async def test_reopened_spool_holds_everything(tmp_path: Path) -> None:
    """Identity, numbers, batches and counts survive."""
    first = await opened(tmp_path)
    for n in range(4):
        await first.append(make_round(n))
    await first.acknowledge(Acknowledged(up_to=4))
    before = await first.state()
    await first.aclose()
    second = await opened(tmp_path)
    assert await second.state() == before
    assert await second.append(make_round()) == 5
    await second.aclose()


async def test_full_spool_thins_before_it_drops_and_keeps_events(tmp_path: Path) -> None:
    """Rounds are merged into means; every event of the merged ones is still there and nothing is dropped."""
    spool = await opened(tmp_path, max_bytes=2500)
    for n in range(100):
        event = AgentEvent(kind="k", message=f"{n}", at_unix_s=1e9 + n)
        await spool.append(make_round(float(n), events=(event,) if n % 25 == 0 else ()))
    merged, dropped = await spool.relieve(1e9 + 100, ())
    state = await spool.state()
    assert merged > 0 and dropped == 0 and state.size_bytes <= 2500 and state.thinned_count == merged
    rounds = [CODEC.decode_round(batch.payload) for batch in await spool.read(0, 999, 999)]
    assert {event.message for each in rounds for event in each.events} == {"0", "25", "50", "75"}
    assert any(each.thinned for each in rounds) and not rounds[-1].thinned
    await spool.aclose()


async def test_mean_says_what_it_stands_for_also_to_the_next_run_and_in_a_new_layout(tmp_path: Path) -> None:
    """Every number is in exactly one batch, by the spool and by the batch itself."""
    spool = await opened(tmp_path, max_bytes=2500)
    for n in range(100):
        await spool.append(make_round(float(n)))
    await spool.relieve(1e9 + 100, ())
    before = await spool.read(0, 999, 999)
    assert [n for b in before for n in range(b.first_sequence, b.sequence + 1)] == list(range(1, 101))
    assert (await spool.state()).oldest_sequence == 1 < before[0].sequence
    await spool.aclose()
    spool = await opened(tmp_path, max_bytes=2500)
    assert await spool.read(0, 999, 999) == before
    await spool.announce(replace(INVENTORY, host_fields=("cpu_ratio", "load_1m")))
    for batch in await spool.read(0, 999, 999):
        message = link_pb2.TelemetryBatch.FromString(batch.payload)
        assert (message.first_sequence or message.sequence) == batch.first_sequence
        assert len(message.host_values) == 2
    await spool.aclose()


async def test_mean_stays_until_every_number_in_it_is_acknowledged(tmp_path: Path) -> None:
    """Its last round may be all that the controller has: stored before the cut, its acknowledgement lost."""
    spool = await opened(tmp_path, max_bytes=2500)
    for n in range(100):
        await spool.append(make_round(float(n)))
    await spool.relieve(1e9 + 100, ())
    mean = (await spool.read(0, 999, 1))[0]
    assert mean.first_sequence == 1 < mean.sequence
    await spool.acknowledge(Acknowledged(up_to=0, ranges=((mean.sequence, mean.sequence),)))
    assert (await spool.read(0, 999, 1))[0] == mean
    await spool.acknowledge(Acknowledged(up_to=0, ranges=((1, mean.sequence),)))
    assert (await spool.read(0, 999, 1))[0].first_sequence == mean.sequence + 1
    await spool.aclose()


async def test_spool_of_an_older_agent_stands_for_its_own_numbers_and_goes_on(tmp_path: Path) -> None:
    """A file without a word of what was merged: nothing is claimed, everything is still there and can be thinned."""
    spool = await opened(tmp_path)
    for n in range(40):
        await spool.append(make_round(float(n)))
    await spool.acknowledge(Acknowledged(up_to=2, ranges=((4, 4), (6, 6))))
    await spool.aclose()
    with closing(sqlite3.connect(tmp_path / "spool.sqlite3")) as database:
        database.execute("DROP TABLE means")
    spool = await opened(tmp_path, max_bytes=900)
    found = await spool.read(0, 999, 999)
    assert [(b.first_sequence, b.sequence) for b in found[:3]] == [(3, 3), (5, 5), (7, 7)]
    merged, dropped = await spool.relieve(1e9 + 40, ())
    assert merged > 0 and dropped == 0
    assert {4, 6}.isdisjoint(n for b in await spool.read(0, 999, 999) for n in range(b.first_sequence, b.sequence + 1))
    await spool.aclose()


async def test_spool_that_cannot_be_thinned_drops_the_oldest_and_counts(tmp_path: Path) -> None:
    """Rounds of many boots never merge: the oldest go, the newest stay, the loss is counted."""
    spool = await opened(tmp_path, max_bytes=2000)
    for n in range(100):
        await spool.append(replace(make_round(float(n)), boot_id=f"boot-{n}"))
    merged, dropped = await spool.relieve(1e9 + 100, ())
    state = await spool.state()
    assert merged == 0 and dropped > 0 and state.dropped_count == dropped and state.size_bytes <= 2000
    assert (await spool.read(0, 999, 999))[-1].sequence == 100
    await spool.aclose()


async def test_age_alone_drops(tmp_path: Path) -> None:
    """History older than the bound goes although there is room."""
    spool = await opened(tmp_path, max_age_s=10.0)
    for n in range(20):
        await spool.append(make_round(float(n)))
    assert await spool.relieve(1e9 + 20, ()) == (0, 10)
    await spool.aclose()


async def test_backlog_of_an_older_inventory_is_laid_out_anew(tmp_path: Path) -> None:
    """Batches stored before the inventory changed are read in the present layout."""
    spool = await opened(tmp_path)
    await spool.append(make_round(7.0))
    await spool.announce(replace(INVENTORY, host_fields=("cpu_ratio", "load_1m")))
    found = await spool.read(0, 9, 9)
    assert CODEC.decode_round(found[0].payload).host_values == (None, 7.0)
    await spool.aclose()
