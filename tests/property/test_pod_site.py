"""Whatever happens to pods, calls, kubelets, agents and the controller: no GPU is shared, nobody is pushed out, no watt is drawn unclaimed;
and once all is well again, everybody who fits is served.

The real engine and the real mover decide over a cluster and hosts in virtual time; chance says what goes wrong, and when.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.pod_site import PodAgent, PodSite, settled_pod_site

WORKLOADS = {"small": (1, 0), "dear": (1, 100), "pair": (2, 50), "big": (4, 10)}
NODES = ("gpu1", "gpu2")


@contextmanager
def a_site(seed: int) -> Iterator[PodSite]:
    """Lend a site at rest."""
    site = settled_pod_site(seed=seed)
    try:
        yield site
    finally:
        site.close()


@dataclass
class Troubles:
    """What may go wrong; each is undone by `end`."""

    site: PodSite
    chance: random.Random
    told: list[str] = field(default_factory=list)

    def some(self) -> None:
        """Let one thing happen."""
        what = self.chance.choice(
            [
                self.scale,
                self.scale,
                self.scale,
                self.delete,
                self.force_delete,
                self.lose_calls,
                self.api_down,
                self.silence,
                self.restart_agent,
                self.restart_controller,
                self.kill_controller_in_a_call,
                self.reject,
                self.lose_permit,
            ]
        )
        what()

    def _note(self, text: str) -> None:
        self.told.append(f"t={self.site.clock.s:.0f} {text}")

    def scale(self) -> None:
        """Somebody scales a workload."""
        name = self.chance.choice(list(WORKLOADS))
        gpu_count, priority = WORKLOADS[name]
        replicas = self.chance.randint(0, 8 // gpu_count)
        self._note(f"scale {name} to {replicas}")
        self.site.cluster.deploy(name, replicas, gpu_count=gpu_count, priority=priority)

    def _pod(self) -> object:
        there = sorted(self.site.cluster.state.pods.values(), key=lambda pod: pod.key)
        return self.chance.choice(there).ref if there else None

    def delete(self) -> None:
        """Somebody deletes a pod, a customer's or a miner."""
        if (ref := self._pod()) is not None:
            self._note(f"delete {ref}")
            self.site.cluster.delete_by_hand(ref)  # type: ignore[arg-type]

    def force_delete(self) -> None:
        """Somebody takes a pod's object away while its process lives."""
        if any(pod.is_under_way for pod in self.site.cluster.state.pods.values()):
            return  # kubelet may give its GPU to who was let go a moment before: nobody could know
        if (ref := self._pod()) is not None:
            lingers_s = self.chance.choice([3.0, 15.0, 60.0])
            self._note(f"force-delete {ref}, lives on for {lingers_s:.0f} s")
            self.site.cluster.force_delete(ref, lingers_s=lingers_s)  # type: ignore[arg-type]

    def lose_calls(self) -> None:
        """Answers get lost, calls are put off."""
        self.site.cluster.lost_calls_ratio = self.chance.choice([0.0, 0.3, 0.8])
        self._note(f"calls lost: {self.site.cluster.lost_calls_ratio}")

    def api_down(self) -> None:
        """The API server goes away, or comes back."""
        self.site.cluster.is_down = not self.site.cluster.is_down
        self._note(f"API down: {self.site.cluster.is_down}")

    def lose_permit(self) -> None:
        """The lease is lost, or won again."""
        self.site.cluster.permit_s = 60.0 - self.site.cluster.permit_s
        self._note(f"permit: {self.site.cluster.permit_s}")

    def _agent(self) -> PodAgent:
        agent = self.site.agents[self.chance.choice(NODES)]
        assert isinstance(agent, PodAgent)
        return agent

    def silence(self) -> None:
        """A kubelet answers its agent no more, or again."""
        agent = self._agent()
        agent.is_kubelet_silent = not agent.is_kubelet_silent
        self._note(f"kubelet of {agent.name} silent: {agent.is_kubelet_silent}")

    def restart_agent(self) -> None:
        """An agent starts anew."""
        agent = self._agent()
        self._note(f"agent {agent.name} restarts")
        agent.restart()

    def restart_controller(self) -> None:
        """The controller is killed; it comes back soon."""
        down_s = self.chance.choice([0, 1, 5])
        self._note(f"controller down for {down_s} s")
        self.site.kill_controller()
        self._wait_dead(down_s)

    def kill_controller_in_a_call(self) -> None:
        """The controller is killed right after its next call or record."""
        if self.chance.random() < 0.5:
            self._note("controller dies after its next call")
            self.site.cluster.dies_after = lambda what: True
        else:
            self._note("controller dies after its next record")
            self.site.journal.crash_after = self.chance.randint(0, 3)

    def reject(self) -> None:
        """A node rejects what is sent there, or no longer."""
        node = self.chance.choice(NODES)
        self.site.cluster.failing ^= {node}
        self._note(f"rejecting: {sorted(self.site.cluster.failing)}")

    def _wait_dead(self, seconds: float) -> None:
        self.site.run(seconds)
        self.site.cluster.dies_after = None
        self.site.start_controller()

    def pass_time(self, seconds: int) -> None:
        """Let time pass; a controller that died comes back."""
        for _ in range(seconds):
            self.site.step()
            self.site.assert_right()
            if self.site.deciding is None:
                self._note("controller comes back")
                self._wait_dead(self.chance.choice([0, 2]))

    def end(self) -> None:
        """Make all well."""
        cluster = self.site.cluster
        self._note("all is well")
        cluster.lost_calls_ratio, cluster.is_down, cluster.permit_s = 0.0, False, 60.0
        cluster.failing.clear()
        cluster.dies_after = None
        self.site.journal.crash_after = None
        for agent in self.site.agents.values():
            if isinstance(agent, PodAgent):
                agent.is_kubelet_silent = False


def why_not_ended(site: PodSite) -> str:
    """Return what is still to be done where nothing goes wrong any more, empty where all is served."""
    cluster = site.cluster
    if site.state.open_flips():
        return "flips are open"
    room = {}
    for name in NODES:
        taken = [pod for pod in cluster.state.pods_on(name) if pod.namespace == "customers"]
        room[name] = 4 - sum(pod.gpu_count for pod in taken)
    for pod in cluster.state.pods.values():
        if pod.is_leaving:
            return f"{pod.ref} leaves"
        if pod.is_gated and pod.gpu_count <= max(room.values()):
            return f"{pod.ref} waits, there is room: {room}"
        if not pod.is_gated and not pod.is_ready:
            return f"{pod.ref} is not ready"
    if site.tenants()["miner"] != sum(room.values()):
        return f"{site.tenants()} GPUs work, room for {sum(room.values())} miners"
    return ""


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.lists(st.integers(0, 25), min_size=3, max_size=14))
def test_whatever_goes_wrong_no_gpu_is_shared_and_in_the_end_all_are_served(seed: int, waits: list[int]) -> None:
    """Random troubles at random times; at every step the promises hold, and after quiet time nothing is left to do."""
    with a_site(seed % 7) as site:
        troubles = Troubles(site, random.Random(seed))
        try:
            for wait in waits:
                troubles.some()
                troubles.pass_time(wait)
            troubles.end()
            for _ in range(900):
                troubles.pass_time(1)
                if not why_not_ended(site):
                    break
            why = why_not_ended(site)
            assert not why, why
        except AssertionError as error:
            words = [*troubles.told, f"t={site.clock.s:.0f}", site.explain() if site.deciding else "no controller"]
            raise AssertionError("\n".join([str(error), *words])) from error
