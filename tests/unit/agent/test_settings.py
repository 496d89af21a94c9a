"""The agent's configuration: what is accepted, what is refused and how, and that the manual names every key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from swingbus.faults import InvalidInput
from swingbus_agent.domain.orders import Mode
from swingbus_agent.domain.readings import Kind
from swingbus_agent.settings import load_settings, parse_settings
from swingbus_agent.settings_keys import KEYS, REQUIRED

MANUAL = Path(__file__).parents[3] / "docs" / "agent.md"
MINER = {"name": "m1", "address": "10.0.0.1", "firmware": "luxos"}
ASICS: dict[str, Any] = {"name": "b1", "kind": "asic", "class": "s19", "miner": [MINER]}
GPUS: dict[str, Any] = {"name": "g1", "kind": "gpu", "class": "h100"}
PODS: dict[str, Any] = {**GPUS, "runs": "pods"}


def refusal(document: dict[str, Any], environment: dict[str, str] | None = None) -> str:
    """Return what is said of a wrong document."""
    with pytest.raises(InvalidInput) as caught:
        parse_settings(document, where="agent.toml", environment=environment or {})
    return str(caught.value)


def test_name_alone_is_enough_and_writes_are_off() -> None:
    """Everything but the name has a default; the default changes nothing anywhere."""
    settings = parse_settings({"name": "edge-1"}, where="agent.toml", environment={})
    assert not settings.writes and settings.banks == ()
    assert settings.metrics.host == "127.0.0.1" and settings.metrics.port == 7445
    assert settings.controller.bundle == settings.state_dir / "bundle"


def test_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    """The path and a suggestion are in the message."""
    text = refusal({"name": "a", "sampling": {"metre_period_s": 1}})
    assert "`sampling.metre_period_s`" in text and "`sampling.meter_period_s`" in text


def test_several_mistakes_are_listed_at_once() -> None:
    """A person mends the file once, not five times."""
    text = refusal({"nam": "a", "writes": "yes", "spool": {"max_bytes": 1}, "bank": [{"kind": "asci"}]})
    for part in ("`nam`", "`name` is missing", "`writes`", "`spool.max_bytes`", "`bank[0].kind`", "`bank[0].name`"):
        assert part in text


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ({"name": "A B"}, "lower-case"),
        ({"name": "a", "bank": [ASICS, ASICS]}, "`b1` occurs 2 times"),
        ({"name": "a", "bank": [{**ASICS, "miner": []}]}, "no miners"),
        ({"name": "a", "bank": [{**GPUS, "miner": [MINER]}]}, "lists miners"),
        ({"name": "a", "bank": [{**GPUS, "gpus": ["GPU-1"], "unit_size": 4}]}, "no multiple"),
        ({"name": "a", "bank": [GPUS, {**GPUS, "name": "g2"}]}, "takes every GPU"),
        ({"name": "a", "bank": [{**GPUS, "workloads": ["lama"]}], "workload": []}, "`lama`"),
        ({"name": "a", "bank": [{**ASICS, "unit_size": 4}]}, "unit_size is 1"),
        (
            {"name": "a", "bank": [{**ASICS, "point": [{"name": "x", "mode": "inference", "power_w": 1}]}]},
            "cannot infer",
        ),
        ({"name": "a", "controller": {"endpoint": "10.0.0.2:7443", "insecure_loopback": True}}, "127.0.0.0/8"),
        ({"name": "a", "controller": {"endpoint": "somewhere"}}, "host:port"),
        (
            {"name": "a", "meter": [{"name": "m", "feeder": "f", "host": "h", "error_ratio": float("nan")}]},
            "error_ratio",
        ),
        ({"name": "a", "sampling": []}, "write [sampling]"),
        ({"name": "a", "bank": {}}, "write [[bank]]"),
        ({"name": "a", "workload": [{"name": "w", "mode": "mining", "command": []}]}, "empty command"),
        ({"name": "a", "bank": [PODS]}, "`pods.miner_namespace` is missing"),
        ({"name": "a", "bank": [{**PODS, "workloads": ["w"]}], "pods": {"miner_namespace": "m"}}, "runs pods but has"),
        ({"name": "a", "bank": [{**ASICS, "runs": "pods"}], "pods": {"miner_namespace": "m"}}, "no pod can hold"),
        ({"name": "a", "bank": [{**GPUS, "runs": "containers"}]}, "`bank[0].runs`"),
        ({"name": "a", "bank": [PODS], "pods": {"miner_namespace": "m", "socket": "kubelet.sock"}}, "the whole path"),
        ({"name": "a", "bank": [PODS], "pods": {"miner_namespace": "m", "mining_workload": "A b"}}, "lower-case"),
        ({"name": "a", "bank": [PODS], "pods": {"miner_namespace": "m", "mining_workload": "inference"}}, "are both"),
        ({"name": "a", "node": {"run_as_group": 5}}, "without `node.run_as_user`"),
        ({"name": "a", "node": {"run_as_user": -1}}, "`node.run_as_user`"),
    ],
)
def test_wrong_document_is_refused_with_what_and_where(document: dict[str, Any], part: str) -> None:
    """Each kind of mistake has its own words."""
    assert part in refusal(document)


def test_password_comes_from_environment_or_file_and_is_not_shown(tmp_path: Path) -> None:
    """A password is read from where the file points and is left out of repr; a missing one is a mistake."""
    (tmp_path / "pw").write_text("from-file\n", encoding="utf-8")
    miners = [
        {**MINER, "password_env": "MINER_PW"},
        {**MINER, "name": "m2", "password_file": str(tmp_path / "pw")},
    ]
    document = {"name": "a", "bank": [{**ASICS, "miner": miners}]}
    settings = parse_settings(document, where="t", environment={"MINER_PW": "from-env"})
    assert [miner.password for miner in settings.banks[0].miners] == ["from-env", "from-file"]
    assert "from-env" not in repr(settings) and "from-file" not in repr(settings)
    assert "MINER_PW" in refusal(document)


def test_bank_that_runs_pods_has_their_two_names() -> None:
    """The controller may call both tenants by name; no program of the file is needed, and the other bank keeps its own."""
    own = {**GPUS, "name": "g2", "gpus": ["GPU-9"], "workloads": ["w"]}
    document = {
        "name": "a",
        "bank": [{**PODS, "gpus": ["GPU-1"]}, own],
        "pods": {"miner_namespace": "mining", "inference_workload": "llm"},
        "workload": [{"name": "w", "mode": "mining", "command": ["true"]}],
    }
    settings = parse_settings(document, where="t", environment={})
    assert [(bank.runs_pods, bank.workloads) for bank in settings.banks] == [(True, ("mining", "llm")), (False, ("w",))]
    tenants = settings.pods.tenants
    assert tenants.workload_of("mining") == "mining" and tenants.workload_of("anything-else") == "llm"


def test_points_and_kinds_are_parsed() -> None:
    """Words of the file become the domain's own."""
    point = {"name": "410MHz", "mode": "mining", "power_w": 1657, "hashrate_ths": 80.5}
    settings = parse_settings({"name": "a", "bank": [{**ASICS, "point": [point]}]}, where="t", environment={})
    bank = settings.banks[0]
    assert bank.kind is Kind.ASIC and bank.points[0].mode is Mode.MINING and bank.points[0].power_w == 1657.0


@pytest.mark.parametrize("text", ["name = ", "\x00", 'name = "a"\nname = "b"'])
def test_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    """The message names the file and the line."""
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match="not TOML"):
        load_settings(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A wrong path is said as such."""
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_settings(tmp_path / "nowhere.toml")


def test_manual_names_every_key_with_its_default() -> None:
    """docs/agent.md and the program agree: same keys, required ones marked."""
    rows = dict(re.findall(r"^\| `([a-z_\[\].0-9]+)` \| \w+ \| ([^|]*) \|", MANUAL.read_text(encoding="utf-8"), re.M))
    assert set(rows) == {key.path for key in KEYS}
    for key in KEYS:
        assert (rows[key.path].strip() == "required") == (key.default is REQUIRED), key.path
        if isinstance(key.default, bool):
            assert rows[key.path].strip() == f"`{str(key.default).lower()}`"
        elif isinstance(key.default, int | float):
            assert float(rows[key.path].strip().strip("`")) == key.default, key.path


def test_manual_shows_how_to_become_another_user() -> None:
    """Its example of a node is a right one; the group is the user's number where none is given."""
    example = (
        MANUAL.read_text(encoding="utf-8").split("## On a Kubernetes node")[1].split("```toml\n")[1].split("```")[0]
    )
    settings = parse_settings(tomllib.loads(f'name = "a"\n{example}'), where="t", environment={})
    assert (settings.node.run_as_user, settings.node.run_as_group) == (64000, 0)
