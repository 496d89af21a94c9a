"""Simulated miners that speak their firmware's own protocol on TCP, each on its own loopback address."""

from __future__ import annotations

from swingbus_sim.miners.server import Firmware, MinerTraffic, ServedMiner, serve_miners

__all__ = ["Firmware", "MinerTraffic", "ServedMiner", "serve_miners"]
