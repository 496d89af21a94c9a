"""docs/log-events.md names every event kind that the programs put on the record, and no other."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from swingbus_controller.app.recording import BUDGET_KINDS
from swingbus_controller.domain.fleet.fleet import ACCUSATIONS, Liveness
from swingbus_controller.domain.flips.flip import Phase
from swingbus_controller.domain.site.curtailment import CurtailmentState

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "log-events.md"
SEVERITIES = {"info", "warning", "error"}

# Calls by which something gets on the record, by program; the kind is the first argument or `kind=`.
DOORS = {
    ROOT / "agent" / "swingbus_agent": {"tell", "_tell"},
    ROOT / "controller" / "swingbus_controller": {"note", "entry"},
}
RECORDS = {"Notice", "JournalEntry", "AgentEvent"}
# Kinds that are made of a word and a state.
MADE_OF = {
    "flip_": {phase.value for phase in Phase},
    "curtailment_": {state.value.lower() for state in CurtailmentState},
    "agent_became_": {liveness.value for liveness in Liveness} - {Liveness.DARK.value},
}


class Module:
    """One source file, and the event kinds that it makes."""

    def __init__(self, path: Path, doors: set[str]) -> None:
        self.path = path
        self.doors = doors
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.constants = {
            target.id: node.value.value
            for node in self.tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        self.functions: dict[ast.AST, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        for function in ast.walk(self.tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                self.functions |= dict.fromkeys(ast.walk(function), function)  # inner functions come later and win

    def kinds(self) -> Iterator[str]:
        """Yield the kinds of all calls that put something on the record."""
        for call in self._calls():
            name = _name(call)
            if name in RECORDS or (name in self.doors and isinstance(call.func, ast.Attribute)):
                kind = _argument(call, 0)
                # `Faults.note` collects what is wrong in a file: it has neither source nor subject.
                if kind is not None and not (name == "note" and not any(k.arg == "subject" for k in call.keywords)):
                    yield from self._values(kind)
            elif name in ("append", "extend") and "events" in ast.unparse(call.func):
                # A bank's reading carries (kind, device, message).
                yield from (
                    each.elts[0].value
                    for each in ast.walk(call)
                    if isinstance(each, ast.Tuple)
                    and len(each.elts) == 3
                    and isinstance(each.elts[0], ast.Constant)
                    and isinstance(each.elts[0].value, str)
                )

    def _calls(self) -> Iterator[ast.Call]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))

    def _values(self, kind: ast.expr) -> set[str]:
        match kind:
            case ast.Constant(value=str(value)):
                return {value}
            case ast.IfExp(body=body, orelse=orelse):
                return self._values(body) | self._values(orelse)
            case ast.JoinedStr(values=[ast.Constant(value=str(prefix)), ast.FormattedValue()]) if prefix in MADE_OF:
                return {prefix + state for state in MADE_OF[prefix]}
            case ast.Subscript(value=ast.Name(id="BUDGET_KINDS")):
                return set(BUDGET_KINDS.values())
            case ast.Attribute(attr="kind"):
                return set()  # passed on: it was made elsewhere
            case ast.Name(id=name) if name in self.constants:
                return {str(self.constants[name])}
            case ast.Name(id=name):
                return self._passed(kind, name)
        raise AssertionError(f"{self.path}:{kind.lineno}: this test cannot tell which kind {ast.unparse(kind)} is")

    def _passed(self, kind: ast.Name, name: str) -> set[str]:
        """Return what callers of the function around `kind` pass as its parameter `name`."""
        function = self.functions[kind]
        names = [each.arg for each in function.args.args]
        if name not in names:
            loops = [each for each in ast.walk(function) if isinstance(each, ast.For)]
            assert any("events" in ast.unparse(loop.iter) for loop in loops), (
                f"{self.path}:{kind.lineno}: what is {name}?"
            )
            return set()  # a reading's events, told on
        if function.name in self.doors:
            return set()  # its callers are looked at themselves
        place = names.index(name) - (names[0] == "self")
        found = [_argument(call, place, name) for call in self._calls() if _name(call) == function.name]
        assert found, f"{self.path}:{kind.lineno}: nobody calls {function.name}"
        return {value for each in found if each is not None for value in self._values(each)}


def _name(call: ast.Call) -> str:
    match call.func:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def _argument(call: ast.Call, place: int, name: str = "kind") -> ast.expr | None:
    by_name = next((each.value for each in call.keywords if each.arg == name), None)
    return by_name or (call.args[place] if len(call.args) > place else None)


def kinds_in_source() -> set[str]:
    """Return every kind that the programs make."""
    return {
        kind
        for program, doors in DOORS.items()
        for path in sorted(program.rglob("*.py"))
        if path.parts[-2:] != ("storage", "journal.py")  # the journal on disk gives back what was put in
        for kind in Module(path, doors).kinds()
    }


def rows() -> list[list[str]]:
    """Return the cells of the page's rows that name events."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


def kinds_on_page() -> list[str]:
    """Return every kind that the page names, as often as it does."""
    return [kind for row in rows() for kind in re.findall(r"`([a-z_]+)`", row[0])]


def test_collector_sees_every_way_of_making_a_kind() -> None:
    """One of each: a constant, a choice, a state, a budget event, a parameter, a notice, a reading's event, a module's constant."""
    assert {
        "controller_came_up",
        "agent_went_dark",
        "flip_rolled_back",
        "grant_issued",
        "device_accused",
        "write_ignored",
        "gpu_xid_seen",
        "bundle_refused",
        "signals_pushed",
    } <= kinds_in_source()


def test_page_names_every_event_kind() -> None:
    """A new kind needs a row that says what it means and what to do."""
    assert sorted(kinds_in_source() - set(kinds_on_page())) == []


def test_page_names_no_kind_that_is_gone() -> None:
    """A row without an event behind it misleads; so do two rows of one event."""
    named = kinds_on_page()
    assert sorted(set(named) - kinds_in_source()) == []
    assert sorted(kind for kind in set(named) if named.count(kind) > 1) == []


def test_kinds_named_elsewhere_are_on_the_page() -> None:
    """What help, contract and swingctl's golden output name can be looked up; what names a device is something an agent tells."""
    manual = re.findall(r"--kind ([a-z]\w+)", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"))
    contract = (ROOT / "protos/swingbus/link/v1alpha/link.proto").read_text(encoding="utf-8")
    comment = re.search(r"// Stable noun_verb word, (.*)\n  string kind = 1;", contract)
    assert comment is not None
    shown = json.loads((ROOT / "tests/golden/swingctl/events-list.json").read_text(encoding="utf-8"))
    named = {*manual, *re.findall(r"`(\w+)`", comment[1]), *(event["kind"] for event in shown["events"])}
    assert manual and len(named) > len(ACCUSATIONS)
    assert sorted(named - set(kinds_on_page())) == []
    assert sorted(set(ACCUSATIONS) - kinds_in_source()) == []


def test_every_row_says_how_bad_it_is_and_what_to_do() -> None:
    """Event, severity, meaning, next step."""
    for row in rows():
        assert len(row) == 4 and all(row), row
        assert row[1] in SEVERITIES, row
