"""The suite of an authority in Secrets on a real API server, and `swingbus-controller certificate --namespace` as typed."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from swingbus.bundle import load_bundle
from swingbus.faults import InvalidInput, WrongState
from swingbus_controller import pki_commands
from swingbus_controller.main import main
from swingbus_sim.cluster.up import Cluster
from tests.cluster.pods import make_namespace
from tests.contract import test_cluster_authority as suite
from tests.contract.test_kubernetes_api import Rig, on_cluster

pytestmark = pytest.mark.cluster
# Every test of the suite is collected here again, with the fixture below.
globals().update({name: test for name, test in vars(suite).items() if name.startswith("test_")})


@pytest.fixture
async def rig(cluster_with_pools: Cluster) -> AsyncIterator[Rig]:
    """Return a namespace on the real API server, in place of the fake."""
    async with on_cluster(cluster_with_pools.kubeconfig) as made:
        yield made


@pytest.fixture
def by_hand(cluster_with_pools: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the options of an authority that the job made in a namespace."""
    monkeypatch.chdir(tmp_path)
    namespace = f"by-hand-{secrets.token_hex(4)}"
    make_namespace(cluster_with_pools.api, namespace)
    options = ["--namespace", namespace, "--kubeconfig", str(cluster_with_pools.kubeconfig)]
    words = ["--endpoint", "c.example:7443", "--name", "c.example", "--agent", "gpu-1"]
    assert main(["certificate", "provide", *options, *words]) == 0
    return options


def test_person_works_on_it_with_her_own_rights(
    by_hand: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue, list, revoke, renew: each as in a folder, and nothing of it stays on her disk but the bundle."""
    assert main(["certificate", "issue", *by_hand, "--operator", "dana", "--role", "admin"]) == 0
    dana = load_bundle(Path("dana.bundle.toml"))
    assert (dana.role, dana.endpoint) == ("admin", "c.example:7443")
    assert main(["certificate", "renew", *by_hand, "--operator", "dana", "--deny-old", "--force"]) == 0
    monkeypatch.setenv("KUBECONFIG", by_hand[3])
    capsys.readouterr()
    assert main(["certificate", "list", *by_hand[:2], "--output", "json"]) == 0
    told = capsys.readouterr().out
    assert told.count('"state": "valid"') == 3 and told.count('"state": "denied"') == 1, told
    assert main(["certificate", "renew", *by_hand, "--server"]) == 0
    assert main(["certificate", "rotate", *by_hand]) == 0
    assert f"certificate renew --namespace {by_hand[1]} --agent gpu-1" in capsys.readouterr().out
    assert [path.name for path in Path.cwd().iterdir() if path.suffix in (".pem", ".jsonl")] == []


def test_nothing_leaves_when_the_authority_cannot_be_given_back(
    by_hand: list[str], cluster_with_pools: Cluster
) -> None:
    """Somebody wrote the Secret meanwhile: no bundle is written whose certificate nobody could revoke."""
    parser = argparse.ArgumentParser()
    pki_commands.mount(parser.add_subparsers())
    left: list[str] = []

    def verb(arguments: argparse.Namespace) -> pki_commands.Rest:
        (arguments.pki / "index.jsonl").write_text("")
        touch = ("annotate", "secret", "swingbus-authority", "touched=yes", "-n", by_hand[1])
        cluster_with_pools.kubectl(*touch)

        def rest() -> int:
            left.append("told")
            return 0

        return rest

    arguments = parser.parse_args(["certificate", "list", *by_hand])
    with pytest.raises(WrongState, match="somebody else worked on the certificate authority"):
        asyncio.run(pki_commands._run_in_cluster(verb, arguments))
    assert left == []


def test_lent_authority_is_gone_after_a_signal(by_hand: list[str]) -> None:
    """Who ends the command leaves no key on the disk."""
    parser = argparse.ArgumentParser()
    pki_commands.mount(parser.add_subparsers())
    lent: list[Path] = []

    def verb(arguments: argparse.Namespace) -> pki_commands.Rest:
        lent.append(arguments.pki)
        assert (arguments.pki / "ca-key.pem").exists()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)  # the signal comes first
        raise AssertionError("nobody ended it")

    with pytest.raises(SystemExit) as ended:
        pki_commands._run(verb, parser.parse_args(["certificate", "list", *by_hand]))
    assert ended.value.code == 128 + signal.SIGTERM
    assert not lent[0].exists()


def test_provide_needs_a_namespace() -> None:
    """It works in Secrets alone."""
    parser = argparse.ArgumentParser()
    pki_commands.mount(parser.add_subparsers())
    arguments = parser.parse_args(["certificate", "provide", "--endpoint", "c.example"])
    with pytest.raises(InvalidInput, match="say where: --namespace NAME"):
        arguments.run(arguments)
