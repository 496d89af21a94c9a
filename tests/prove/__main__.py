"""Run the proof: `python -m tests.prove --histories 20000`, `--seed N --trace`, `--mutants 3000`."""

from __future__ import annotations

import sys

from tests.prove.runner import main

sys.exit(main())
