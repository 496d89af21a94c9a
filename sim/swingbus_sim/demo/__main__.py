"""`python -m swingbus_sim.demo`: play a scenario with the real programs, judge it, write the report."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from swingbus.faults import SwingbusError
from swingbus_sim.demo.processes import Processes
from swingbus_sim.demo.report import bars, build_report
from swingbus_sim.demo.screen import Screen
from swingbus_sim.demo.story import Run, Story, read_json
from swingbus_sim.scenario_file import load_scenario

PIN_BEFORE_END_S = 30.0  # most flips are over by then; what is left is waited for


def main() -> int:
    """Run the demo; 0 if every promise was kept, 1 if one was broken, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="swingbus-sim demo", description=__doc__)
    parser.add_argument("--scenario", default="demo", help="a name from `swingbus-sim list`, or a .toml file")
    parser.add_argument("--data", type=Path, default=None, help="folder with the real price and demand series")
    parser.add_argument(
        "--out", type=Path, default=Path("build/demo"), help="run folder (default: %(default)s); it is emptied first"
    )
    parser.add_argument(
        "--shift", type=int, default=0, help="move every loopback address, so that two runs can share a machine"
    )
    options = parser.parse_args()
    try:
        return asyncio.run(_run(options))
    except SwingbusError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("demo: stopped", file=sys.stderr)
        return 130


async def _run(options: argparse.Namespace) -> int:
    scenario = load_scenario(options.scenario, data=options.data, shift=options.shift)
    folder = options.out.resolve()
    run = Run(
        scenario=scenario,
        scenario_name=options.scenario,
        folder=folder,
        data=None if options.data is None else options.data.resolve(),
        shift=options.shift,
        processes=Processes(folder.parent / f"{folder.name}-logs"),
    )
    story = Story(run, pin_before_end_s=PIN_BEFORE_END_S)
    this = asyncio.current_task()
    assert this is not None
    # SIGTERM ends the run as Ctrl-C does: every process that it started is ended.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    try:
        print(
            f"{scenario.description}\npreparing keys, certificates and configurations in {options.out} ...",
            flush=True,
        )
        await story.prepare()
        print("starting simulator, judge, controller and agents ...", flush=True)
        await story.start()
        assert story.watcher is not None
        # The baselines run beside the story, at the lowest priority: nobody waits for them at the end.
        baseline = [
            sys.executable,
            "-m",
            "swingbus_sim.main",
            "baseline",
            options.scenario,
            "--out",
            str(folder / "baselines.json"),
        ]
        data = ["--data", str(run.data)] if run.data else []
        run.processes.start("baselines", ["nice", "-n", "19", *baseline, *data])
        async with asyncio.TaskGroup() as group:
            screen = group.create_task(Screen(run, story.watcher).show())
            await story.play()
            screen.cancel()
        print(f"the story is over, {run.waited_for_flips_s:.0f} s after its last act; counting ...", flush=True)
        await story.finish()
        report = await build_report(run, story.watcher, read_json(folder / "baselines.json"))
    finally:
        await story.close()
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))
    return _summary(report, folder / "report.json")


def _summary(report: dict[str, object], path: Path) -> int:
    print(
        f"\n{report['scenario']}: {report['verdict']}, {report['processes']} processes, market clock x {report['market_clock_factor']}"
    )
    changed = report["changed_settings"]
    assert isinstance(changed, list)
    for setting in changed:
        print(f"  setting {setting}")
    broken = 0
    for promise, kept, figure in bars(report):
        broken += not kept
        print(f"  {'kept  ' if kept else 'BROKEN'} {promise}: {figure}")
    reasons = report["verdict_reasons"] or []
    assert isinstance(reasons, list)
    for reason in reasons:
        print(f"  judge: {reason}")
    print(f"the whole report is {path}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
