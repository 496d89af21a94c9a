"""How a run of the bench is set: quick or whole, and where progress goes."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One run. `quick` shortens everything; its figures prove that the bench works, not how fast the product is."""

    quick: bool = False
    runs: int = 3
    began_s: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print a line of progress."""
        print(f"[{time.monotonic() - self.began_s:6.1f} s] {text}", file=sys.stderr, flush=True)
