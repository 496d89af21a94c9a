"""`swingbus-controller check`: a site file in plain words, before anything runs on it.

Decides what to warn of. Refuses to know: agents and meters as they are. Invariant: it opens no port, no database, no key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from swingbus.quantities import format_power
from swingbus_controller.domain.planning.plan import Authority
from swingbus_controller.domain.power.bank import ceiling_w, idle_w
from swingbus_controller.domain.power.limits import lowest_limit_w
from swingbus_controller.domain.site.sitefile import SiteFile
from swingbus_controller.settings import Configuration


def describe(configuration: Configuration) -> str:
    """Return the site as tables, with warnings."""
    site = configuration.site
    lines = [
        f"site {site.name}: authority {site.authority.value}, price zone {site.price_zone}, "
        f"{len(site.tree.feeders)} feeders, {len(site.banks)} banks, {len(site.agents())} agents",
        "",
        *_table(
            ("FEEDER", "KIND", "LIMIT", "CEILINGS", "SHARE", "AT REST", "U MAX", "METER", "READ BY"), _feeders(site)
        ),
        "",
        *_table(("BANK", "CLASS", "FEEDER", "DEVICES", "CEILING", "AT REST", "SAFE SHARE"), _banks(site)),
    ]
    if site.changed_settings:
        lines += ["", "protocol settings that differ from their defaults:"]
        lines += [f"  {change.sentence()}" for change in site.changed_settings]
    warnings = _warnings(site)
    if warnings:
        lines += ["", "worth knowing:"]
        lines += [f"  - {warning}" for warning in warnings]
    return "\n".join(lines)


def sum_of_ceilings_w(site: SiteFile, feeder: str) -> float:
    """Return the ceilings of all banks below a feeder, losses included, in watts at the feeder."""
    below = site.tree.subtree(feeder)
    return sum(
        ceiling_w(bank.spec) * site.tree.loss_factor(bank.feeder, feeder) for bank in site.banks if bank.feeder in below
    )


def _at_rest_w(site: SiteFile, feeder: str) -> float:
    below = site.tree.subtree(feeder)
    return sum(
        idle_w(bank.spec) * site.tree.loss_factor(bank.feeder, feeder) for bank in site.banks if bank.feeder in below
    )


def _feeders(site: SiteFile) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for name in site.feeders_in_order():
        feeder, note = site.tree.feeder(name), site.feeder_notes[name]
        limit_w = lowest_limit_w(feeder.limits, 0.0)
        ceilings_w = sum_of_ceilings_w(site, name)
        depth = len(site.tree.path(name)) - 1
        rows.append(
            (
                "  " * depth + name,
                note.kind,
                format_power(limit_w) if math.isfinite(limit_w) else "none",
                format_power(ceilings_w),
                f"{ceilings_w / limit_w:.0%}" if math.isfinite(limit_w) and limit_w > 0 else "-",
                format_power(_at_rest_w(site, name)),
                format_power(site.tree.uncontrolled_max_w(name)),
                note.meter or "-",
                note.meter_agent or "-",
            )
        )
    return rows


def _banks(site: SiteFile) -> list[Sequence[str]]:
    return [
        (
            bank.name,
            bank.device_class,
            bank.feeder,
            str(bank.device_count),
            format_power(ceiling_w(bank.spec)),
            format_power(idle_w(bank.spec)),
            format_power(bank.spec.safe_share_w),
        )
        for bank in site.banks
    ]


def _warnings(site: SiteFile) -> list[str]:
    warnings = []
    if site.authority is Authority.OBSERVE:
        warnings.append("authority observe: everything is read, nothing is written")
    for name in site.feeders_in_order():
        limit_w = lowest_limit_w(site.tree.feeder(name).limits, 0.0)
        rest_w = _at_rest_w(site, name)
        if rest_w > limit_w:
            warnings.append(
                f"feeder {name}: all its banks at rest take {format_power(rest_w)}, more than its limit of {format_power(limit_w)}"
            )
    warnings += [
        f"bank {bank.name}: no meter below the grid's measures its group: its grants can shrink, but power never settles them"
        for bank in site.banks
        if site.tree.nearest_meter(bank.feeder) in (None, site.tree.root)
    ]
    if site.tree.feeder(site.tree.root).meter is None:
        warnings.append("the head feeder has no meter: uncontrolled load counts at its maximum")
    warnings += [
        f"class {c.name}: factors are defaults, not commissioned" for c in site.classes.values() if not c.commissioned
    ]
    return warnings


def _table(head: Sequence[str], rows: list[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]
