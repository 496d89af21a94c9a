"""Run the benchmarks: `python -m tests.benchmarks [--quick] [--only NAME] [--out build/bench.json]`."""

from __future__ import annotations

import sys

from tests.benchmarks.runner import main

sys.exit(main())
