"""Reads a scenario from TOML and refuses what it does not understand, naming file, line and the next step.

Decides that a scenario is well formed: names resolve, the tree is a tree, addresses are loopback and distinct.
"""

from __future__ import annotations

import difflib
import ipaddress
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from swingbus.faults import InvalidInput, NotFound
from swingbus_sim import scenario as model
from swingbus_sim.catalogue import ASIC_CLASSES, GPU_CLASSES, OVERRIDABLE_ASIC_KEYS, AsicClass
from swingbus_sim.series import CsvColumn, Series, series_from_csv, series_from_points

SCENARIO_FOLDER = Path(__file__).parent / "scenarios"
_SERIES = ("price_usd_per_mwh", "demand_gpus", "hashprice_usd_per_th_day")
_FORMAT = 1
# Which protocols a class's machines can be made to speak.
_SPEAKS = {"luxos": ("luxos",), "whatsminer": ("whatsminer", "whatsminer-v3")}


class _Table:
    """One TOML table being read: every key must be asked for, else `finish` refuses the file."""

    def __init__(self, source: _Source, where: str, values: Mapping[str, object]) -> None:
        self.source = source
        self.where = where
        self._values = values
        self._asked: set[str] = set()

    def fault(self, key: str | None, message: str) -> InvalidInput:
        """Return (not raise) the error for a key, with its line where it can be found."""
        return self.source.fault(self.where, key, message)

    def has(self, key: str) -> bool:
        self._asked.add(key)
        return key in self._values

    def text(self, key: str, default: str | None = None) -> str:
        value = self._take(key, default)
        if not isinstance(value, str) or not value:
            raise self.fault(key, f"wants a text, got {value!r}")
        return value

    def number(self, key: str, default: float | None = None, *, low: float = 0.0, high: float = 1e12) -> float:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.fault(key, f"wants a number, got {value!r}")
        if not low <= value <= high:
            raise self.fault(key, f"must lie in {low:g}..{high:g}, got {value!r}")
        return float(value)

    def optional_number(self, key: str, *, low: float = 0.0, high: float = 1e12) -> float | None:
        return self.number(key, low=low, high=high) if self.has(key) else None

    def whole(self, key: str, default: int | None = None, *, low: int = 0, high: int = 1_000_000) -> int:
        value = self.number(key, default, low=low, high=high)
        if value != int(value):
            raise self.fault(key, f"wants a whole number, got {value!r}")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.fault(key, f"wants true or false, got {value!r}")
        return value

    def texts(self, key: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
        value = self._take(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise self.fault(key, f"wants a list of texts, got {value!r}")
        return tuple(str(v) for v in value)

    def choice(self, key: str, options: Sequence[str], default: str | None = None) -> str:
        value = self.text(key, default)
        if value not in options:
            raise self.fault(key, f"{value!r} is unknown{_nearest(value, options)}; choose one of {', '.join(options)}")
        return value

    def table(self, key: str, *, required: bool = True) -> _Table | None:
        self._asked.add(key)
        value = self._values.get(key)
        if value is None:
            if required:
                raise self.fault(None, f"the table [{key}] is missing")
            return None
        if not isinstance(value, dict):
            raise self.fault(key, "wants a table")
        return _Table(self.source, f"{self.where}{key}.", value)

    def tables(self, key: str) -> list[_Table]:
        self._asked.add(key)
        value = self._values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self.fault(key, f"wants an array of tables, [[{key}]]")
        return [_Table(self.source, f"{self.where}{key}[{i}].", v) for i, v in enumerate(value)]

    def raw(self, key: str) -> object:
        return self._take(key, None)

    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def finish(self) -> None:
        """Refuse keys that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                known = sorted(self._asked)
                raise self.fault(key, f"unknown key{_nearest(key, known)}; known keys here: {', '.join(known)}")

    def _take(self, key: str, default: object) -> object:
        self._asked.add(key)
        if key in self._values:
            return self._values[key]
        if default is None:
            raise self.fault(None, f"the key {key!r} is missing")
        return default


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


class _Source:
    """The file's name and text, for error messages."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._lines = text.splitlines()

    def fault(self, where: str, key: str | None, message: str) -> InvalidInput:
        line = self._line(where, key)
        place = f"{self.path.name}:{line}" if line is not None else self.path.name
        name = f"{where}{key}" if key is not None else where.rstrip(".") or "(top)"
        return InvalidInput(
            f"{place}: {name}: {message}", reason="SCENARIO_INVALID", metadata={"file": str(self.path), "key": name}
        )

    def _line(self, where: str, key: str | None) -> int | None:
        """Find the line by its array header and key; None where the text writes it in another way."""
        start = 0
        head, _, rest = where.partition("[")
        if rest:
            wanted = int(rest.partition("]")[0])
            seen = -1
            for number, line in enumerate(self._lines):
                if line.strip() == f"[[{head}]]":
                    seen += 1
                    if seen == wanted:
                        start = number
                        break
            else:
                return None
        elif head.rstrip("."):
            for number, line in enumerate(self._lines):
                if line.strip() == f"[{head.rstrip('.')}]":
                    start = number
                    break
        if key is None:
            return start + 1
        for number in range(start, len(self._lines)):
            text = self._lines[number].strip()
            if text.startswith(key) and text[len(key) :].lstrip().startswith("="):
                return number + 1
            if number > start and text.startswith("["):
                break
        return start + 1


def scenario_names() -> tuple[str, ...]:
    """Return the scenarios that come with the simulator."""
    return tuple(sorted(p.stem for p in SCENARIO_FOLDER.glob("*.toml")))


def load_scenario(name_or_path: str | Path, *, data: Path | None = None, shift: int = 0) -> model.Scenario:
    """Read a scenario by its name or path.

    Args:
        name_or_path: `demo`, or the path of a TOML file.
        data: folder with the real series; None takes the points in the file.
        shift: added to the second part of every loopback address, so that several runs can share one machine.

    Raises:
        NotFound: no such scenario.
        InvalidInput: the file is not a valid scenario; the message names file, line and key.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = SCENARIO_FOLDER / f"{name_or_path}.toml"
    if not path.is_file():
        raise NotFound(
            f"no scenario {str(name_or_path)!r}; there are {', '.join(scenario_names())}, or give the path of a .toml file"
        )
    text = path.read_text(encoding="utf-8")
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path.name}: not valid TOML: {error}", reason="SCENARIO_INVALID") from error
    parsed = _scenario(_Table(_Source(path, text), "", values), data=data)
    return _shifted(parsed, shift) if shift else parsed


def event_from_mapping(values: Mapping[str, object], scenario: model.Scenario, *, now_s: float) -> model.Event:
    """Read one event as a test or a runner sends it: the keys of [[events]], `at_s` being now.

    Raises:
        InvalidInput: as for a scenario file.
    """
    table = _Table(_Source(Path("event"), ""), "", {**values, "at_s": min(now_s, scenario.duration_s)})
    return _event(table, scenario)


def _shifted(scenario: model.Scenario, shift: int) -> model.Scenario:
    return replace(
        scenario,
        miners=tuple(replace(m, first_address=model.shift_address(m.first_address, shift)) for m in scenario.miners),
        meters=tuple(replace(m, address=model.shift_address(m.address, shift)) for m in scenario.meters),
    )


def _scenario(top: _Table, *, data: Path | None) -> model.Scenario:
    if top.whole("format") != _FORMAT:
        raise top.fault("format", f"this simulator reads format {_FORMAT}")
    duration_s = top.number("duration_s", low=1.0, high=86400.0)
    site = top.table("site")
    assert site is not None
    market_table = top.table("market")
    assert market_table is not None
    market = model.Market(
        clock_factor=market_table.number("clock_factor", 1.0, low=1e-3),
        pool_fee_ratio=market_table.number("pool_fee_ratio", 0.02, high=1.0),
        inference_usd_per_gpu_hour=market_table.number("inference_usd_per_gpu_hour"),
        gpu_mining_usd_per_gpu_hour=market_table.number("gpu_mining_usd_per_gpu_hour", 0.0),
    )
    market_table.finish()
    defaults = {
        "overload_ratio": site.number("overload_ratio", 1.0, low=1.0, high=5.0),
        "reaction_s": site.number("reaction_s", 12.0),
        "catch_s": site.number("catch_s", 15.0),
    }
    nodes = _nodes(top, defaults)
    names = {n.name for n in nodes}
    seed = top.whole("seed", high=2**53)
    miners = tuple(_miner_group(t, names) for t in top.tables("miners"))
    hosts = tuple(host for t in top.tables("hosts") for host in _hosts(t, names))
    meters = tuple(_meter(t, names) for t in top.tables("meters"))
    loads = tuple(_load(t, names) for t in top.tables("loads"))
    scenario = model.Scenario(
        name=top.text("name"),
        description=top.text("description", "-"),
        seed=seed,
        duration_s=duration_s,
        measure_from_s=top.number("measure_from_s", 0.0),
        site=site.text("name"),
        voltage_v=site.number("voltage_v", 240.0, low=1.0),
        frequency_hz=site.number("frequency_hz", 60.0, low=1.0),
        power_factor_ratio=site.number("power_factor_ratio", 0.98, low=0.1, high=1.0),
        ambient_c=site.number("ambient_c", 24.0, low=-60.0, high=60.0),
        spikes_per_minute=site.number("spikes_per_minute", 6.0),
        nodes=nodes,
        miners=miners,
        hosts=hosts,
        cooling=tuple(_cooling(t, names) for t in top.tables("cooling")),
        loads=loads,
        meters=meters,
        market=market,
        series=_series(top, market, data=data, duration_s=duration_s),
    )
    site.finish()
    _refuse_doubles(top, scenario)
    events = tuple(sorted((_event(t, scenario) for t in top.tables("events")), key=lambda e: e.at_s))
    top.finish()
    return replace(scenario, events=events)


def _nodes(top: _Table, defaults: Mapping[str, float]) -> tuple[model.Node, ...]:
    result: list[model.Node] = []
    for table in top.tables("nodes"):
        parent = table.text("parent") if table.has("parent") else None
        known = [n.name for n in result]
        if parent is not None and parent not in known:
            raise table.fault(
                "parent", f"{parent!r} is not a node above this one{_nearest(parent, known)}; list parents first"
            )
        if parent is None and result:
            raise table.fault(None, f"a second node without a parent; only {result[0].name!r} may be the root")
        result.append(
            model.Node(
                name=table.text("name"),
                parent=parent,
                limit_w=table.optional_number("limit_w", low=1.0),
                window_s=table.number("window_s", 1.0, low=0.1, high=3600.0),
                loss_ratio=table.number("loss_ratio", 0.0, high=0.5),
                overload_ratio=table.number("overload_ratio", defaults["overload_ratio"], low=1.0, high=5.0),
                reaction_s=table.number("reaction_s", defaults["reaction_s"]),
                catch_s=table.number("catch_s", defaults["catch_s"]),
            )
        )
        table.finish()
    if not result:
        raise top.fault(None, "no [[nodes]]: a site needs at least its grid feeder")
    return tuple(result)


def _node_name(table: _Table, names: set[str]) -> str:
    name = table.text("node")
    if name not in names:
        raise table.fault("node", f"no node {name!r}{_nearest(name, sorted(names))}")
    return name


def _loopback(table: _Table, key: str) -> str:
    text = table.text(key)
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError as error:
        raise table.fault(key, f"{text!r} is not an IPv4 address") from error
    if not address.is_loopback:
        raise table.fault(key, f"{text} is not a loopback address; the simulator listens on 127.0.0.0/8 only")
    return text


def _miner_group(table: _Table, names: set[str]) -> model.MinerGroup:
    asic_class: AsicClass = ASIC_CLASSES[table.choice("class", sorted(ASIC_CLASSES))]
    for key in OVERRIDABLE_ASIC_KEYS:
        if not table.has(key):
            continue
        if key == "sleep_is_lasting":
            asic_class = replace(asic_class, sleep_is_lasting=table.flag(key, True))
        else:
            asic_class = replace(asic_class, **{key: table.number(key)})  # type: ignore[arg-type]  # all numbers
    count = table.whole("count", low=1, high=4000)
    group = model.MinerGroup(
        name=table.text("name"),
        node=_node_name(table, names),
        agent=table.text("agent"),
        asic_class=asic_class,
        count=count,
        firmware=table.choice("firmware", _SPEAKS[asic_class.firmware], asic_class.firmware),
        first_address=_loopback(table, "first_address"),
        start_mining_count=table.whole("start_mining", 0, high=count),
        password=table.text("password") if table.has("password") else None,
    )
    table.finish()
    return group


def _hosts(table: _Table, names: set[str]) -> list[model.GpuServer]:
    """Read one [[hosts]] table; `count` > 1 makes name1, name2, ... on node1, node2, ..."""
    gpu_class = GPU_CLASSES[table.choice("class", sorted(GPU_CLASSES))]
    count = table.whole("count", 1, low=1, high=512)
    name = table.text("name")
    node = table.text("node")
    result = []
    for index in range(count):
        suffix = "" if count == 1 else str(index + 1)
        own_node = node if node in names else node + suffix
        if own_node not in names:
            raise table.fault("node", f"no node {own_node!r}{_nearest(own_node, sorted(names))}")
        result.append(
            model.GpuServer(
                name=name + suffix,
                node=own_node,
                agent=name + suffix,
                gpu_class=gpu_class,
                gpu_count=table.whole("gpus", low=1, high=16),
                unit_size=table.whole("unit_size", 1, low=1, high=16),
                rides_through_s=table.number("rides_through_s", 0.02),
                boot_s=table.number("boot_s", 60.0),
            )
        )
    table.finish()
    return result


def _cooling(table: _Table, names: set[str]) -> model.Cooling:
    result = model.Cooling(
        node=_node_name(table, names),
        ratio=table.number("ratio", high=2.0),
        base_w=table.number("base_w", 0.0),
        nameplate_w=table.number("nameplate_w"),
        lag_s=table.number("lag_s", 45.0, low=0.1),
    )
    table.finish()
    return result


def _load(table: _Table, names: set[str]) -> model.Load:
    result = model.Load(
        name=table.text("name"),
        node=_node_name(table, names),
        kind=table.choice("kind", ("office", "hosted", "auxiliary")),
        base_w=table.number("base_w"),
        swing_w=table.number("swing_w", 0.0),
        period_s=table.number("period_s", 60.0, low=1.0),
        noise_w=table.number("noise_w", 0.0),
        max_w=table.number("max_w"),
        step_w=table.number("step_w", 0.0),
    )
    table.finish()
    return result


def _meter(table: _Table, names: set[str]) -> model.MeterSpec:
    result = model.MeterSpec(
        name=table.text("name"),
        node=_node_name(table, names),
        address=_loopback(table, "address"),
        port=table.whole("port", 5020, low=1, high=65535),
        window_s=table.number("window_s", 0.5, low=0.1, high=60.0),
        lag_s=table.number("lag_s", 0.2, high=60.0),
        gain_error_ratio=table.number("gain_error_ratio", 0.0, low=-0.5, high=0.5),
        declared_error_ratio=table.number("declared_error_ratio", 0.005, high=0.5),
        word_order=table.choice("word_order", ("big", "little"), "big"),
    )
    table.finish()
    return result


def _series(top: _Table, market: model.Market, *, data: Path | None, duration_s: float) -> dict[str, Series]:
    result: dict[str, Series] = {}
    parent = top.table("series")
    assert parent is not None
    for name in _SERIES:
        table = parent.table(name)
        assert table is not None
        points = table.raw("points")
        if not isinstance(points, list) or not all(isinstance(p, list) for p in points):
            raise table.fault("points", "wants [[second, value], ...]")
        inline = series_from_points(name, points, where=f"{table.where}points")
        column_table = table.table("csv", required=False)
        result[name] = inline
        if column_table is not None:
            column = CsvColumn(
                file=column_table.text("file"),
                column=column_table.text("column"),
                from_row=column_table.whole("from_row", 0),
                row_s=column_table.number("row_s", low=1.0),
                scale=column_table.number("scale", 1.0),
                offset=column_table.number("offset", 0.0, low=-1e9),
                floor=column_table.number("floor", -1e9, low=-1e9),
            )
            column_table.finish()
            if data is not None:
                result[name] = series_from_csv(
                    name, column, root=data, clock_factor=market.clock_factor, duration_s=duration_s
                )
        table.finish()
    parent.finish()
    return result


def _refuse_doubles(top: _Table, scenario: model.Scenario) -> None:
    """Refuse two things of one name or address, and groups whose addresses run into each other."""
    seen: dict[str, str] = {}
    named = [
        *((n.name, "node") for n in scenario.nodes),
        *((m.name, "meter") for m in scenario.meters),
        *((load.name, "load") for load in scenario.loads),
        *((h.name, "host") for h in scenario.hosts),
    ]
    for name, kind in named:
        key = f"{kind} {name}"
        if key in seen:
            raise top.fault(None, f"two of {kind} {name!r}")
        seen[key] = kind
    endpoints: dict[str, str] = {}
    for device, address in scenario.addresses().items():
        if address in endpoints:
            raise top.fault(
                None, f"{device} and {endpoints[address]} share the address {address}; move one first_address"
            )
        endpoints[address] = device
    for meter in scenario.meters:
        endpoint = f"{meter.address}:{meter.port}"
        if endpoint in endpoints:
            raise top.fault(None, f"meters {meter.name} and {endpoints[endpoint]} share {endpoint}")
        endpoints[endpoint] = meter.name


def _event(table: _Table, scenario: model.Scenario) -> model.Event:
    kind_name = table.choice("kind", sorted(model.EVENT_KINDS))
    kind = model.EVENT_KINDS[kind_name]
    for key in kind.required:
        if not table.has(key):
            raise table.fault(None, f"a {kind_name} event needs {key!r}")
    takes = set(kind.keys)
    for key in table.names():
        if key not in takes and key not in ("kind", "at_s", "label", "disturbance", "settle_s"):
            raise table.fault(
                key,
                f"a {kind_name} event does not take this{_nearest(key, sorted(takes))}; it takes {', '.join(kind.keys)}",
            )
    targets = table.texts("targets", ())
    event = model.Event(
        kind=kind_name,
        at_s=table.number("at_s", high=scenario.duration_s),
        duration_s=table.optional_number("for_s"),
        targets=targets,
        pick_count=table.whole("pick", low=1) if table.has("pick") else None,
        delay_s=table.number("delay_s", 2.0),
        ratio=table.number("ratio", 1.0),
        power_w=table.number("power_w", 0.0),
        voltage_ratio=table.number("voltage_ratio", 0.0, high=1.2),
        limit_w=table.optional_number("limit_w", low=1.0),
        notice_s=table.number("notice_s", 0.0),
        ramp_s=table.number("ramp_s", 0.0),
        signal=table.choice("signal", ("KILL", "TERM", "STOP", "CONT"), "KILL"),
        restart_after_s=table.optional_number("restart_after_s"),
        label=table.text("label", kind_name),
        is_disturbance=table.flag("disturbance", kind.is_disturbance),
        settle_s=table.number("settle_s", 60.0),
        is_runners=kind.is_runners,
    )
    table.finish()
    _check_targets(table, event, scenario)
    return event


def _check_targets(table: _Table, event: model.Event, scenario: model.Scenario) -> None:
    asics = {m.name for m in scenario.miners} | {d for m in scenario.miners for d in m.device_names()}
    picks = {f"{m.name}:{state}" for m in scenario.miners for state in ("asleep", "mining", "worst", "best")}
    gpus = {d for h in scenario.hosts for d in h.device_names()}
    known: set[str]
    if event.kind.startswith("gpu_limits"):
        known = {h.name for h in scenario.hosts}
    elif event.kind.startswith("gpu_"):
        known = gpus
    elif event.kind.startswith("meter_"):
        known = {m.name for m in scenario.meters}
    elif event.kind == "load_surge":
        known = {load.name for load in scenario.loads}
    elif event.kind in ("limit", "sag", "outage"):
        known = {n.name for n in scenario.nodes}
    elif event.is_runners:
        known = {m.agent for m in scenario.miners} | {h.agent for h in scenario.hosts}
    else:
        known = asics | picks
    for target in event.targets:
        if target not in known:
            raise table.fault("targets", f"no {target!r} for a {event.kind} event{_nearest(target, sorted(known))}")
