"""The live view: a small table that redraws in a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import shutil
import sys

from swingbus.quantities import format_power
from swingbus_sim.demo.story import Run
from swingbus_sim.demo.watcher import Watcher, bank_words

_PERIOD_S = 1.0
_PLAIN_PERIOD_S = 10.0
_BAR = 40


class Screen:
    """Shows a run while it goes on."""

    def __init__(self, run: Run, watcher: Watcher) -> None:
        self._run = run
        self._watcher = watcher
        self._is_terminal = sys.stdout.isatty()
        self._lines_up = 0
        self._told = 0

    async def show(self) -> None:
        """Redraw until cancelled."""
        while True:
            if self._is_terminal:
                self._redraw()
            else:
                self._tell()
            await asyncio.sleep(_PERIOD_S if self._is_terminal else _PLAIN_PERIOD_S)

    def _redraw(self) -> None:
        width, height = shutil.get_terminal_size()
        lines = [line[: width - 1] for line in self._view()][: height - 1]
        up = f"\x1b[{self._lines_up}F\x1b[J" if self._lines_up else ""
        sys.stdout.write(up + "\n".join(lines) + "\n")
        sys.stdout.flush()
        self._lines_up = len(lines)

    def _tell(self) -> None:
        new = sorted(self._run.diary)[self._told :]
        self._told += len(new)
        for at_s, text in new:
            print(f"{at_s:6.1f} s  {text}")
        print("  ".join(self._view()[:2]), flush=True)

    def _view(self) -> list[str]:
        seen = self._watcher.seen
        run = self._run
        lines = [
            f"{run.scenario.name}: {run.now():5.0f} of {run.scenario.duration_s:.0f} s, {run.processes.started_count} processes started"
        ]
        site = seen.site
        if site is None:
            return [*lines, "waiting for the controller"]
        power_w = site.metered_power_w if site.HasField("metered_power_w") else None
        state = "" if seen.is_reachable else "  CONTROLLER DOES NOT ANSWER"
        lines.append(
            f"site {_bar(power_w, site.limit_w)} {'?' if power_w is None else format_power(power_w)} of {format_power(site.limit_w)}, "
            f"claimed {format_power(site.claimed_power_w)}{state}"
        )
        if site.disturbance:
            lines.append(f"disturbance: {site.disturbance}")
        lines.append(
            "  ".join(f"{name.split('_usd')[0].split('_gpu_count')[0]} {value}" for name, value in seen.signals.items())
        )
        for bank in seen.banks:
            modes = " ".join(f"{count} {mode.lower()}" for mode, count in sorted(bank.mode_counts.items()) if count)
            grant = format_power(bank.grant_w) if bank.HasField("grant_w") else "-"
            lines.append(
                f"  {bank_words(bank.name):<16} {bank.state:<10} grant {grant:>9}  claim {format_power(bank.claim_w):>9}  {modes}"
            )
        lines.append("")
        lines.extend(f"{at_s:6.1f} s  {event.kind}: {event.message}" for at_s, event in seen.events[-8:])
        lines.extend(f"{at_s:6.1f} s  * {text}" for at_s, text in sorted(run.diary)[-4:])
        return lines


def _bar(power_w: float | None, limit_w: float) -> str:
    if power_w is None or limit_w <= 0.0:
        return "[" + "?" * _BAR + "]"
    filled = min(_BAR, round(_BAR * power_w / limit_w))
    return "[" + "#" * filled + "." * (_BAR - filled) + "]"
