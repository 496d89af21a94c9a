"""`python -m swingbus_sim.demo_kube`: the demo with two GPU hosts as real nodes and the controller as a pod, the same judge. Needs root."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from swingbus.faults import SwingbusError
from swingbus_sim.demo.controller import SERVER
from swingbus_sim.demo.processes import Processes
from swingbus_sim.demo.report import bars, build_report
from swingbus_sim.demo.screen import Screen
from swingbus_sim.demo.story import Run, Story
from swingbus_sim.demo_kube.controller_pod import ControllerPod
from swingbus_sim.demo_kube.manifests import CONTROLLER
from swingbus_sim.demo_kube.pods import TOYS, PodSide
from swingbus_sim.demo_kube.report import controller_figures, logged, pod_bars, pod_figures
from swingbus_sim.demo_kube.timeline import Timeline
from swingbus_sim.demo_kube.watching import PodWatch
from swingbus_sim.scenario_file import load_scenario

PIN_BEFORE_END_S = 30.0
NODES = 2


def main() -> int:
    """Run it; 0 if every promise was kept, 1 if one was broken, 2 where it can't run."""
    parser = argparse.ArgumentParser(prog="python -m swingbus_sim.demo_kube", description=__doc__)
    parser.add_argument("--scenario", default="demo", help="a name from `swingbus-sim list`, or a .toml file")
    parser.add_argument(
        "--images", type=Path, default=Path("build/images"), help="the images' archives (`make images`)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/demo-kube"), help="run folder; it is emptied first")
    parser.add_argument("--shift", type=int, default=0, help="move every loopback address")
    options = parser.parse_args()
    try:
        return asyncio.run(_run(options))
    except SwingbusError as error:
        print(f"demo-kube: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("demo-kube: stopped", file=sys.stderr)
        return 130


def _say(words: str) -> None:
    print(f"  cluster: {words}", flush=True)


async def _run(options: argparse.Namespace) -> int:
    scenario = load_scenario(options.scenario, shift=options.shift)
    folder = options.out.resolve()
    run = Run(
        scenario=scenario,
        scenario_name=options.scenario,
        folder=folder,
        data=None,
        shift=options.shift,
        processes=Processes(folder.parent / f"{folder.name}-logs"),
    )
    hosts = scenario.hosts[:NODES]
    pods = PodSide(
        hosts=[host.name for host in hosts],
        feeder=scenario.node(hosts[0].node).parent or hosts[0].node,
        site=scenario.site,
        gpu_count=hosts[0].gpu_count,
        images=options.images.resolve(),
        folder=folder,
        say=_say,
        loaded=(*TOYS, CONTROLLER),
    )
    controller = ControllerPod(pods, run.processes, folder)
    story = Story(run, controller=controller, pin_before_end_s=PIN_BEFORE_END_S, pods=pods)
    this = asyncio.current_task()
    assert this is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    try:
        print(
            f"{scenario.description}; {', '.join(pods.hosts)} are real nodes, the controller is a pod\npreparing ...",
            flush=True,
        )
        await story.prepare()
        print("starting simulator, judge, controller and agents ...", flush=True)
        await story.start()
        assert story.watcher is not None
        watch = PodWatch(pods, shelves=folder / "sim" / "shelves", now=run.now)
        async with asyncio.TaskGroup() as group:
            screen = group.create_task(Screen(run, story.watcher).show())
            timeline = group.create_task(Timeline(run, pods, watch).play())
            await story.play()
            screen.cancel()
            timeline.cancel()
        print(f"the story is over, {run.waited_for_flips_s:.0f} s after its last act; counting ...", flush=True)
        await story.finish()
        report = await build_report(run, story.watcher, {})
        flips = report["flips"]
        assert isinstance(flips, list)
        agents = [host.agent for host in hosts]
        log = run.processes.log(SERVER)
        figures = pod_figures(flips, agents, watch, logged(log, "pod_call_made"))
        figures |= controller_figures(
            controller.lives,
            run.controller_killed_s,
            story.watcher.seen.events,
            logged(log, "lease_acquired"),
            unix_at_zero=story.watcher.unix_at_zero,
        )
    finally:
        await story.close()
    report |= figures
    path = folder / "report.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False))
    return _summary(report, path)


def _summary(report: dict[str, object], path: Path) -> int:
    print(f"\n{report['scenario']} with pods: {report['verdict']}, {report['processes']} processes")
    broken = 0
    for promise, kept, figure in (*bars(report), *pod_bars(report)):
        broken += not kept
        print(f"  {'kept  ' if kept else 'BROKEN'} {promise}: {figure}")
    print(f"the whole report is {path}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
