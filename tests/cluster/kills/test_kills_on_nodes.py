"""Controller and agents are killed (SIGKILL) at each step of each change of tenants on real nodes, and come back a second later.

One site (two kubelets, controller, agents, simulator, judge) goes through the cases one after the other. By default four changes have
several kills each, of the node's agent and of the controller; `--full-matrix` kills each of them alone, at every step. That a kill hit its
step is asserted from outside while the victim is dead: by the record's file or by the API. How each case ended is printed (`-s`).
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from swingbus_sim.cluster.layout import layout
from swingbus_sim.cluster.requirements import missing_for_nodes, prepare_for_nodes
from tests.cluster.conftest import skip_nodes
from tests.cluster.kills.flows import FLOWS, ByEviction, ByScaleDown, Flow, ToInference
from tests.cluster.kills.site import AWAY_S, NAME, Ending, KillSite
from tests.cluster.kills.strikes import AGENT, CONTROLLER, Strike, Struck
from tools.images.build import Built

pytestmark = [
    pytest.mark.nodes,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]
# Each case begins where the one before it ended. An agent that is struck at the step that is named last stays away until it is missed.
TOGETHER: tuple[tuple[type[Flow], tuple[Strike, ...], str], ...] = (
    (
        ToInference,
        (
            Strike(AGENT, "flip_planned"),
            Strike(CONTROLLER, "flip_draining"),
            Strike(CONTROLLER, "DeleteMiner"),
            Strike(AGENT, "LiftGate"),
            Strike(CONTROLLER, "flip_verifying"),
        ),
        "",
    ),
    (ByScaleDown, (Strike(AGENT, "flip_draining"), Strike(CONTROLLER, "MakeMiner")), ""),
    (
        ToInference,
        (Strike(AGENT, "flip_released"), Strike(CONTROLLER, "LiftGate"), Strike(AGENT, "flip_verifying")),
        "flip_released",
    ),
    (ByEviction, (Strike(AGENT, "flip_draining"), Strike(CONTROLLER, "EvictPod"), Strike(AGENT, "MakeMiner")), ""),
)


def cases() -> list[Any]:
    """Return (flow, strikes, step at which the agent is missed) of every case."""
    together = [
        pytest.param(flow, strikes, missed, id="-".join((flow.name, *(f"{s.victim}-{s.step}" for s in strikes))))
        for flow, strikes, missed in TOGETHER
    ]
    alone = {
        flow: [
            pytest.param(
                flow, (Strike(victim, step),), "", id=f"{flow.name}-{victim}-{step}", marks=pytest.mark.full_matrix
            )
            for victim in (CONTROLLER, AGENT)
            for step in flow.steps
        ]
        for flow in FLOWS
    }
    # There and back again: few cases have to be brought to where they begin.
    turns = chain.from_iterable(zip_longest(alone[ToInference], [*alone[ByScaleDown], *alone[ByEviction]]))
    return [*together, *(case for case in turns if case is not None)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(images: Mapping[str, Built], say: Callable[[str], None]) -> AsyncIterator[KillSite]:
    """Return the site, all of it mining."""
    prepare_for_nodes(say)
    if lacks := missing_for_nodes(layout(NAME).home):
        skip_nodes("; ".join(lacks))
    # Short, for the sockets in it.
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    made = KillSite(folder, images["toy-miner"].archive.parent, say)
    try:
        await made.start()
        yield made
    finally:
        for ending in made.endings:
            print(f"  {ending.case:60} {ending.seconds:5.1f} s  {ending.flips}")
        await made.close()
        shutil.rmtree(folder, ignore_errors=True)


async def assert_hit(site: KillSite, struck: Struck) -> None:
    """Assert from outside, while the victim is dead, that it was struck at its step."""
    if not struck.revision:
        pod = await site.pod(struck.subject)
        match struck.step:
            case "DeleteMiner" | "EvictPod":
                assert pod is None or pod["metadata"].get("deletionTimestamp"), f"{struck.subject} does not leave"
            case "LiftGate":
                assert pod is not None and not pod["spec"].get("schedulingGates"), f"{struck.subject} was not let go"
            case "MakeMiner":
                assert pod is not None, f"{struck.subject} was not made"
            case _:
                raise AssertionError(f"{struck.step} is no call")
        return
    (kind,), *_ = site.ask_journal(
        "SELECT kind FROM entries WHERE subject = ? AND revision <= ? AND kind != 'bank_placed' ORDER BY revision DESC",
        struck.subject,
        struck.revision,
    )
    assert kind == ("grant_issued" if struck.step.startswith("grant_") else struck.step.removesuffix("_2"))
    if struck.victim == CONTROLLER:
        assert site.revision() == struck.revision, "something was recorded after the step"


@pytest.mark.parametrize(("kind", "strikes", "missed"), cases())
async def test_killed_at_a_step_the_change_ends_once(
    site: KillSite, kind: type[Flow], strikes: tuple[Strike, ...], missed: str, request: pytest.FixtureRequest
) -> None:
    """The change ends as if nobody had been killed, nothing is stuck, and the pool says why things are as they are."""
    flow = kind(site)
    await flow.come_to_start()
    began_s = time.monotonic()
    site.arm(*strikes)
    try:
        await flow.begin()
        for number, strike in enumerate(strikes):
            struck = await site.struck(number)
            assert (struck.victim, struck.step) == (strike.victim, strike.step)
            await assert_hit(site, struck)
            await asyncio.sleep(AWAY_S)
            if strike.step == missed:
                await site.is_missed(struck)
                assert await site.gated_count() == 1, "somebody was let go to GPUs that nobody has seen free"
            await site.bring_back(struck)
    finally:
        site.strikes.disarm()
    await flow.judge()
    records = site.kinds_of_flips(flow.revision_before)
    told = "; ".join(f"{flip}: {', '.join(kinds)}" for flip, kinds in records.items()).replace("flip_", "")
    site.endings.append(Ending(case=request.node.callspec.id, flips=told, seconds=time.monotonic() - began_s))
    assert {kinds[-1] for kinds in records.values()} <= {"flip_active", "flip_rolled_back"}, told
    assert site.is_looking and not site.wrong, site.wrong[:3]


@pytest.mark.full_matrix
@pytest.mark.parametrize("kind", FLOWS)
async def test_the_tables_of_steps_leave_no_record_out(site: KillSite, kind: type[Flow]) -> None:
    """Nobody is killed: the records of the change are those that its table names."""
    flow = kind(site)
    await flow.come_to_start()
    await flow.begin()
    await flow.judge()
    (kinds,) = site.kinds_of_flips(flow.revision_before).values()
    assert kinds == [step.removesuffix("_2") for step in flow.steps if step.startswith("flip_")]


async def test_judge_finds_no_fault_in_any_of_it(site: KillSite) -> None:
    """Not one authorised watt-second over any limit, no false confirmation, no pod that the scheduler or a kubelet turned away."""
    for reason in ("Preempted", "UnexpectedAdmissionError"):
        assert not await site.events(reason)
    assert site.is_looking and not site.wrong, site.wrong[:3]
    verdict = await site.verdict()
    told = ("seconds", "over_cap_ws", "limit_used_ratio", "confirmations_checked", "false_confirmations")
    print({key: verdict[key] for key in told})
    assert verdict["is_complete"] and verdict["confirmations_checked"] > 10
    assert verdict["over_cap_ws"]["authorised"] == 0, verdict
    assert verdict["false_confirmations"] == 0, verdict
