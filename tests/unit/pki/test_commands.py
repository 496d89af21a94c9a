"""`swingbus-controller init` and `certificate` as typed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from swingbus.bundle import load_bundle, parse_bundle
from swingbus.faults import AlreadyExists, InvalidInput, NotFound, Unreachable
from swingbus_controller.adapters.kubernetes.access import usual_kubeconfig
from swingbus_controller.pki_commands import mount

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command line in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def call(*argv: str) -> int:
        parser = argparse.ArgumentParser(prog="swingbus-controller")
        mount(parser.add_subparsers(required=True))
        args = parser.parse_args(argv)
        code: int = args.run(args)
        return code

    return call


def test_init_issue_list_is_enough_to_start(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The way of a new site, with the next step printed each time."""
    assert run("init", "--pki", "p", "--name", "10.0.0.5") == 0
    assert "certificate issue --pki p --agent" in capsys.readouterr().out
    assert run("certificate", "issue", "--pki", "p", "--agent", "edge-1") == 0
    assert "swingbus-agent join edge-1.bundle.toml" in capsys.readouterr().out
    assert run("certificate", "issue", "--pki", "p", "--operator", "dana", "--role", "admin") == 0
    assert load_bundle(Path("dana.bundle.toml")).role == "admin"
    assert load_bundle(Path("edge-1.bundle.toml")).endpoint == "10.0.0.5:7443"
    capsys.readouterr()
    assert run("certificate", "list", "--pki", "p") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["NAME", "ROLE", "STATE", "EXPIRES", "DAYS", "SERIAL"]
    assert [line.split()[:3] for line in table[1:]] == [
        ["swingbus-controller", "server", "valid"],
        ["edge-1", "agent", "valid"],
        ["dana", "admin", "valid"],
    ]


def test_operator_is_the_default_role(run: Run) -> None:
    """An operator's certificate may write, but sets no limits."""
    run("init", "--pki", "p")
    run("certificate", "issue", "--pki", "p", "--operator", "dana")
    assert load_bundle(Path("dana.bundle.toml")).role == "operator"


def test_list_as_json_and_expiry_warning(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output stays parseable; the warning goes to standard error."""
    run("init", "--pki", "p")
    run("certificate", "issue", "--pki", "p", "--agent", "edge-1", "--days", "5")
    capsys.readouterr()
    run("certificate", "list", "--pki", "p", "--output", "json")
    listed = json.loads(capsys.readouterr().out)["certificates"]
    assert [(c["name"], c["state"]) for c in listed] == [("swingbus-controller", "valid"), ("edge-1", "expiring")]
    run("certificate", "list", "--pki", "p")
    assert "certificate renew --pki p --agent edge-1" in capsys.readouterr().err


def test_bundle_is_never_overwritten_by_chance(run: Run) -> None:
    """And nothing is issued when it could not be written."""
    run("init", "--pki", "p")
    Path("edge-1.bundle.toml").write_text("mine")
    with pytest.raises(AlreadyExists, match="--force"):
        run("certificate", "issue", "--pki", "p", "--agent", "edge-1")
    with pytest.raises(NotFound, match="no directory"):
        run("certificate", "issue", "--pki", "p", "--agent", "edge-1", "--out", "none/x.toml")
    assert run("certificate", "issue", "--pki", "p", "--agent", "edge-1", "--force") == 0


def test_bundle_on_standard_output_is_the_bundle(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """For `| ssh edge swingbus-agent join -`."""
    run("init", "--pki", "p")
    capsys.readouterr()
    run("certificate", "issue", "--pki", "p", "--agent", "edge-1", "--out", "-", "--endpoint", "c.example")
    assert parse_bundle(capsys.readouterr().out).endpoint == "c.example:7443"


def test_renew_deny_old_and_deny_by_serial(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A lost machine is locked out in one command."""
    run("init", "--pki", "p")
    run("certificate", "issue", "--pki", "p", "--agent", "edge-1")
    run("certificate", "renew", "--pki", "p", "--agent", "edge-1", "--force", "--deny-old")
    serial = load_bundle(Path("edge-1.bundle.toml")).serial
    run("certificate", "deny", "--pki", "p", "--serial", serial, "--reason", "stolen")
    capsys.readouterr()
    run("certificate", "list", "--pki", "p", "--output", "json")
    held = [c["state"] for c in json.loads(capsys.readouterr().out)["certificates"] if c["name"] == "edge-1"]
    assert held == ["denied", "denied"]
    assert "stolen" in Path("p/denied.txt").read_text()


def test_renew_of_the_wrong_kind_is_refused(run: Run) -> None:
    """--agent for a person is a slip."""
    run("init", "--pki", "p")
    run("certificate", "issue", "--pki", "p", "--operator", "dana")
    with pytest.raises(NotFound, match="use --operator"):
        run("certificate", "renew", "--pki", "p", "--agent", "dana", "--force")


def test_server_is_renewed_with_new_names(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A controller that moved."""
    run("init", "--pki", "p")
    assert run("certificate", "renew", "--pki", "p", "--server", "--name", "10.0.0.9") == 0
    assert Path("p/server-names.txt").read_text() == "10.0.0.9\n"
    assert "next connection" in capsys.readouterr().out


def test_rotate_says_whom_to_renew(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Step by step."""
    run("init", "--pki", "p")
    run("certificate", "issue", "--pki", "p", "--agent", "edge-1")
    run("certificate", "rotate", "--pki", "p")
    assert "certificate renew --pki p --agent edge-1" in capsys.readouterr().out
    assert run("certificate", "rotate", "--pki", "p", "--finish", "--force") == 0


def test_role_for_an_agent_is_a_usage_error(run: Run) -> None:
    """An agent's role is agent."""
    run("init", "--pki", "p")
    with pytest.raises(InvalidInput, match="belongs to --operator"):
        run("certificate", "issue", "--pki", "p", "--agent", "edge-1", "--role", "admin")


def test_bad_name_is_refused_with_the_fix(run: Run) -> None:
    """Before a key is made."""
    run("init", "--pki", "p")
    with pytest.raises(InvalidInput, match="try 'edge-1'"):
        run("certificate", "issue", "--pki", "p", "--agent", "Edge-1")


def test_old_certificate_counts_until_the_new_one_is_written(run: Run, tmp_path: Path) -> None:
    """A bundle that can't be written locks nobody out."""
    run("init", "--pki", "p")
    run("certificate", "issue", "--pki", "p", "--agent", "edge-1")
    full = tmp_path / "full"
    full.mkdir()
    target = full / "edge-1.toml"
    target.mkdir()  # a folder can't be replaced by a file
    with pytest.raises(Unreachable, match="cannot write"):
        run("certificate", "renew", "--pki", "p", "--agent", "edge-1", "--deny-old", "--force", "--out", str(target))
    assert "edge-1" not in Path("p/denied.txt").read_text()
    old = load_bundle(Path("edge-1.bundle.toml")).serial
    assert run("certificate", "renew", "--pki", "p", "--agent", "edge-1", "--deny-old", "--force") == 0
    assert old in Path("p/denied.txt").read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--pki", "p", "--namespace", "n"), "two places: name one"),
        (("--kubeconfig", "f"), "belong to --namespace"),
        (("--context", "c"), "belong to --namespace"),
    ],
)
def test_place_is_said_once(run: Run, options: tuple[str, ...], words: str) -> None:
    """Not one that is quietly left out."""
    with pytest.raises(InvalidInput, match=words):
        run("certificate", "list", *options)


def test_kubeconfig_is_the_one_that_other_tools_go_by(tmp_path: Path) -> None:
    """Named, usual, or none; several are nobody's guess."""
    assert usual_kubeconfig({"HOME": str(tmp_path)}) is None
    usual = tmp_path / ".kube" / "config"
    usual.parent.mkdir()
    usual.touch()
    assert usual_kubeconfig({"HOME": str(tmp_path)}) == usual
    assert usual_kubeconfig({"HOME": str(tmp_path), "KUBECONFIG": "mine"}) == Path("mine")
    with pytest.raises(InvalidInput, match="names several files"):
        usual_kubeconfig({"KUBECONFIG": "a:b"})
