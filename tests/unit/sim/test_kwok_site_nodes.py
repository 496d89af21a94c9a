"""What stands behind KWOK's nodes: GPUs, kubelets and the sampler, in virtual time."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swingbus_sim.catalogue import GPU_CLASSES
from swingbus_sim.kwok_site.kubelet import Kubelet, PodFaults, PodView
from swingbus_sim.kwok_site.measures import Sampler, total
from swingbus_sim.kwok_site.meter import Meter
from swingbus_sim.kwok_site.physics import OVER_LIMIT_RATIO, Server
from swingbus_sim.kwok_site.timeline import Timeline

H100 = GPU_CLASSES["h100-sxm"]
START_S, STOP_S = 0.9, 1.4  # at most


class Node:
    """One node whose time a test moves."""

    def __init__(self, *, gpu_count: int = 4, boot_limit_w: float | None = None, seed: int = 3) -> None:
        self.now_s = 100.0
        self.timeline = Timeline()
        self.server = Server(
            "n1",
            H100,
            gpu_count=gpu_count,
            timeline=self.timeline,
            random=Random(seed),
            now_s=self.now_s,
            boot_limit_w=boot_limit_w,
        )
        self.notes: list[tuple[str, str]] = []
        self.kubelet = Kubelet(
            server=self.server,
            timeline=self.timeline,
            random=Random(seed),
            note=lambda what, view, at_s: self.notes.append((what, view.name)),
        )

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.timeline.run(self.now_s)

    def see(self, pod: PodView) -> str:
        return self.kubelet.see(pod, self.now_s)

    def processes(self) -> list[set[str]]:
        return [set(gpu.processes) for gpu in self.server.gpus]

    def alive(self, uid: str) -> bool:
        return any(uid in gpu.processes for gpu in self.server.gpus)

    def held(self, uid: str) -> list[int]:
        return [i for i, view in enumerate(self.kubelet.holders()) if view is not None and view.uid == uid]


def pod(
    uid: str, *, tenant: str = "mining", gpus: int = 1, phase: str = "Running", is_deleting: bool = False
) -> PodView:
    return PodView(
        uid=uid,
        namespace="ns",
        name=uid,
        node="n1",
        tenant=tenant,
        gpu_count=gpus,
        phase=phase,
        is_deleting=is_deleting,
    )


def test_process_begins_after_the_bind_and_draws_only_then() -> None:
    """A bound pod holds its GPU at once and draws nothing yet; its process comes within a second."""
    node = Node()
    idle_w = node.server.power_w

    node.see(pod("a"))

    assert len(node.held("a")) == 1 and not node.alive("a") and node.server.power_w == idle_w
    node.wait(START_S)
    assert node.alive("a")
    assert node.server.power_w > idle_w


def test_process_ends_after_its_pod_was_told_to_and_before_kwok_lets_it_go() -> None:
    """Deletion alone frees nothing: the process lives on for a while, the GPU stays held until the pod is gone."""
    node = Node()
    node.see(pod("a"))
    node.wait(START_S)

    node.see(pod("a", is_deleting=True))

    assert node.alive("a")
    node.wait(STOP_S)
    assert not node.alive("a")
    assert node.held("a")
    node.kubelet.gone("a", node.now_s)
    assert not node.held("a")
    assert node.notes == [("started", "a"), ("ended", "a")]


def test_force_deleted_pod_is_gone_while_its_process_still_draws() -> None:
    """The API's word is no evidence: after a force-delete the process lives on, and the GPU is held while its container ends."""
    node = Node()
    node.see(pod("a"))
    node.wait(START_S)

    node.kubelet.gone("a", node.now_s)

    assert node.alive("a") and node.held("a")
    node.wait(STOP_S)
    assert not node.alive("a") and not node.held("a")


def test_process_that_outlives_its_pod_shares_its_gpu_with_the_next_one() -> None:
    """The kubelet gives the GPU away, for all it knows: two processes are on it, and only the physical model shows that."""
    node = Node(gpu_count=1)
    node.kubelet.set_faults(PodFaults(outlive_s=30.0), node.now_s)
    node.see(pod("a"))
    node.wait(START_S)
    node.see(pod("a", is_deleting=True))
    node.wait(2.0)
    node.kubelet.gone("a", node.now_s)

    assert node.alive("a") and not node.held("a")
    assert node.see(pod("b", tenant="inference")) == ""
    node.wait(START_S)
    assert node.processes() == [{"a", "b"}]
    node.wait(30.0)
    assert node.processes() == [{"b"}]


def test_stuck_container_runs_until_it_is_healed() -> None:
    """A pod stuck in Terminating keeps its process; healed, it is told again without any new word of the API."""
    node = Node()
    node.kubelet.set_faults(PodFaults(never_stops=True), node.now_s)
    node.see(pod("a"))
    node.wait(START_S)
    node.see(pod("a", is_deleting=True))
    node.wait(60.0)
    assert node.alive("a")

    node.kubelet.set_faults(PodFaults(), node.now_s)
    node.wait(STOP_S)

    assert not node.alive("a")


def test_failed_pod_gives_its_gpu_back_although_the_api_shows_it() -> None:
    """A pod that a Stage fails ends at once; its GPU is free while its object stays."""
    node = Node(gpu_count=1)
    node.see(pod("a"))
    node.wait(START_S)

    node.see(pod("a", phase="Failed"))

    assert not node.alive("a") and not node.held("a")
    assert node.see(pod("b")) == ""


def test_pod_that_finds_too_few_gpus_is_refused_once() -> None:
    """As a kubelet refuses it: told once, again where KWOK calls it running all the same, and never run although GPUs come free later."""
    node = Node(gpu_count=2)
    node.see(pod("a", gpus=2))

    assert node.see(pod("b", phase="Pending")) == "1 GPUs asked for, 0 free"
    assert node.see(pod("b", phase="Pending")) == ""
    assert node.see(pod("b", phase="Running")) == "1 GPUs asked for, 0 free"
    assert node.see(pod("b", phase="Failed")) == ""
    node.see(pod("a", phase="Failed"))
    node.wait(5.0)
    assert not node.alive("b")


def test_reboot_forgets_limits_and_starts_bound_pods_again_with_nobody_asked() -> None:
    """Everything dies, limits are the driver's again, and after the boot the pods are back."""
    node = Node()
    node.see(pod("a"))
    node.wait(START_S)
    node.server.write_limit(0, 300.0, node.now_s)
    node.wait(1.0)
    assert node.server.gpus[0].enforced_w == 300.0

    node.kubelet.reboot(node.now_s)

    assert not node.alive("a") and not node.kubelet.is_up
    assert [gpu.enforced_w for gpu in node.server.gpus] == [H100.default_limit_w] * 4
    node.wait(node.kubelet.times.boot_s + START_S)
    assert node.alive("a") and node.kubelet.is_up


def test_limit_bites_within_a_second_and_the_last_write_wins() -> None:
    """A write is not its effect; of two writes only the later one is ever enforced in the end."""
    node = Node()
    node.see(pod("a", tenant="inference"))
    node.wait(START_S)
    (index,) = node.held("a")
    gpu = node.server.gpus[index]
    assert gpu.power_w == H100.inference_full_w

    node.server.write_limit(index, 300.0, node.now_s)
    node.server.write_limit(index, 500.0, node.now_s)
    assert gpu.enforced_w == H100.default_limit_w
    node.wait(1.0)

    assert gpu.enforced_w == 500.0
    assert gpu.power_w == pytest.approx(500.0 * (1.0 + OVER_LIMIT_RATIO))


def test_limits_are_clipped_to_what_the_gpu_takes() -> None:
    """A GPU takes no limit outside its own range."""
    node = Node()
    node.server.write_limit(0, 1.0, node.now_s)
    node.server.write_limit(1, 9999.0, node.now_s)
    node.wait(1.0)

    assert [gpu.enforced_w for gpu in node.server.gpus[:2]] == [H100.min_limit_w, H100.max_limit_w]


def test_energy_is_exact_between_changes() -> None:
    """Energy is power times time, piece by piece, whenever it is asked for; sampler and meter show the same."""
    node = Node()
    sampler, meter = Sampler([node.server], node.now_s), Meter("m", "n1", [node.server], node.now_s)
    idle_w = node.server.power_w
    node.see(pod("a"))
    node.wait(START_S)
    busy_w = node.server.power_w
    started_j = node.server.energy_j(node.now_s)
    node.wait(2.0)

    sample, reading = sampler.sample(node.now_s), meter.read(node.now_s)

    assert idle_w * START_S <= started_j <= busy_w * START_S
    assert node.server.energy_j(node.now_s) == pytest.approx(started_j + 2.0 * busy_w)
    assert reading is not None
    assert sample.power_w == pytest.approx(reading.power_w)
    assert (sample.idle, sample.mining, sample.inference) == (3, 1, 0)


def test_frozen_meter_repeats_itself_and_its_register_stands_still() -> None:
    """What a controller has to notice: the power looks alive, the energy does not move."""
    node = Node()
    meter = Meter("m", "n1", [node.server], node.now_s)
    node.wait(1.0)
    first = meter.read(node.now_s)
    meter.is_frozen = True
    node.see(pod("a"))
    node.wait(3.0)
    second = meter.read(node.now_s)

    assert first is not None and second is not None
    assert (second.power_w, second.energy_j) == (first.power_w, first.energy_j)
    assert second.end_s > first.end_s


def test_watt_seconds_over_a_limit_are_counted_second_by_second() -> None:
    """A second below does not pay for a second above."""
    node = Node(gpu_count=1)
    sampler = Sampler([node.server], node.now_s)
    samples = []
    for _ in range(3):
        node.wait(1.0)
        samples.append(sampler.sample(node.now_s))
    node.see(pod("a", tenant="inference"))
    node.wait(START_S)
    sampler.sample(node.now_s)
    for _ in range(2):
        node.wait(1.0)
        samples.append(sampler.sample(node.now_s))
    limit_w = samples[0].power_w + 100.0

    summed = total(samples, limit_w)

    assert summed.over_limit_ws == pytest.approx(2 * (samples[-1].power_w - limit_w))
    assert summed.seconds_over == pytest.approx(2.0)
    assert summed.peak_w == pytest.approx(samples[-1].power_w)
    assert summed.ramp_w_per_s == pytest.approx(samples[-1].power_w - samples[0].power_w)
    assert [summed.idle_gpu_s, summed.inference_gpu_s] == pytest.approx([3.0, 2.0])


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["bind", "delete", "gone", "fail", "wait", "reboot", "outlive", "stuck", "heal"]),
        st.integers(0, 5),
        st.integers(1, 3),
    ),
    max_size=60,
)


@given(steps=STEPS, seed=st.integers(0, 100))
def test_no_gpu_is_ever_allocated_twice_and_nothing_stays_behind(steps: list[tuple[str, int, int]], seed: int) -> None:
    """Over any history: one holder per GPU, processes only where they were allocated, and after the end of all pods nothing draws."""
    node = Node(seed=seed)
    known: dict[str, PodView] = {}
    lives = [0] * 6
    for what, number, size in steps:
        uid = f"p{number}-{lives[number]}"
        match what:
            case "bind" if uid not in known:
                known[uid] = pod(uid, gpus=size, tenant="mining" if number % 2 else "inference")
                node.see(known[uid])
            case "delete" if uid in known:
                node.see(replace(known[uid], is_deleting=True))
            case "fail" if uid in known:
                node.see(replace(known[uid], phase="Failed"))
            case "gone" if uid in known:
                node.kubelet.gone(uid, node.now_s)
                del known[uid]
                lives[number] += 1
            case "wait":
                node.wait(size)
            case "reboot":
                node.kubelet.reboot(node.now_s)
            case "outlive":
                node.kubelet.set_faults(PodFaults(outlive_s=5.0), node.now_s)
            case "stuck":
                node.kubelet.set_faults(PodFaults(never_stops=True), node.now_s)
            case "heal":
                node.kubelet.set_faults(PodFaults(), node.now_s)
        views = [view for view in node.kubelet.holders() if view is not None]
        for view in views:  # one that lost a GPU to another holds less than it was given
            assert sum(other.uid == view.uid for other in views) == view.gpu_count
        for gpu in node.server.gpus:
            assert gpu.power_w <= gpu.enforced_w * (1.0 + OVER_LIMIT_RATIO) + 1e-9
    node.kubelet.set_faults(PodFaults(), node.now_s)
    node.kubelet.resync([], node.now_s)
    node.wait(node.kubelet.times.boot_s + 10.0)

    assert node.kubelet.holders() == [None] * 4
    assert node.processes() == [set()] * 4
