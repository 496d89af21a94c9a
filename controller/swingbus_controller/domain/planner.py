"""The strike-price planner: signature only in this commit."""

from __future__ import annotations

from .market import MarketView
from .plan import Plan, PlanView
from .policy import Policy


def plan(view: PlanView, market: MarketView, policy: Policy, now_s: float) -> Plan:
    """Say how many devices of each bank should be at which operating point, and why."""
    raise NotImplementedError
