"""A toy miner: keeps the GPUs that its pod was given busy until SIGTERM, and says so.

    toy-miner                    flags, or the variables TOY_INTENSITY, TOY_DRAIN_S, TOY_CRASH_AFTER_S

Leaves its GPUs before it ends, `--drain-s` after the signal, as a miner that submits its last shares; killed, it leaves them all the same.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence

from swingbus.faults import SwingbusError
from swingbus_sim.toys.gpus import parse_ratio, parse_seconds, take_given

EXIT_CRASH = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Mine until SIGTERM or SIGINT; return the exit code."""
    options = _parser().parse_args(arguments)
    wanted = {signal.SIGTERM, signal.SIGINT}
    # Blocked before the seat is taken: a signal in between must find somebody who leaves it.
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        seat, uuids = take_given("mining", load_ratio=options.intensity)
    except SwingbusError as error:
        print(f"toy-miner: {error}", file=sys.stderr)
        return 1
    print(f"toy-miner: mining on {','.join(uuids)} at {options.intensity:.2f}", flush=True)
    try:
        if options.crash_after_s is None:
            signal.sigwait(wanted)
        elif signal.sigtimedwait(wanted, options.crash_after_s) is None:
            print("toy-miner: simulated crash", file=sys.stderr)
            return EXIT_CRASH
        time.sleep(options.drain_s)
    finally:
        seat.leave()
    print("toy-miner: left", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="toy-miner", description="Keep this pod's simulated GPUs busy.")
    parser.add_argument(
        "--intensity",
        type=parse_ratio,
        default=os.environ.get("TOY_INTENSITY", "1"),
        help="how busy the GPUs are kept, 0 to 1 (default: $TOY_INTENSITY, else 1)",
    )
    parser.add_argument(
        "--drain-s",
        type=parse_seconds,
        default=os.environ.get("TOY_DRAIN_S", "0"),
        help="seconds between SIGTERM and the end; its GPUs are busy until then (default: $TOY_DRAIN_S, else 0)",
    )
    parser.add_argument(
        "--crash-after-s",
        type=parse_seconds,
        default=os.environ.get("TOY_CRASH_AFTER_S"),
        help=f"end with code {EXIT_CRASH} after so long (default: $TOY_CRASH_AFTER_S, else never)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
