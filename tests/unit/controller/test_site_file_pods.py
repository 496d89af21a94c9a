"""Site files whose GPU banks run pods: what is missing or contradicts itself is named, with what to do."""

from __future__ import annotations

import tomllib

import pytest

from swingbus.faults import InvalidInput
from swingbus_controller.domain.site.sitefile_parser import parse_site
from swingbus_controller.domain.site.strict_table import Faults, StrictTable
from tests.fakes.site_files import BANK, FEEDER, SITE

IN_CLUSTER = 'workloads = "kubernetes"\nnode = "n1"\npool = "pool"\n'


def parse(
    first: str, second: str = "", *, klass: str = "h100", edit: tuple[str, str] = ("", "")
) -> list[tuple[str, str, str]]:
    """Parse a site of two banks with these lines of their own; return name, node and pool of each."""
    kind = "container" if klass == "s21" else "pdu"
    feeders = [
        FEEDER.format(name="g1", kind=kind, losses_ratio=0.0, agent="a1"),
        FEEDER.format(name="g2", kind="pdu", losses_ratio=0.0, agent="a2"),
    ]
    banks = [
        BANK.format(agent="a1", bank="b", feeder="g1", klass=klass, count=8) + first,
        BANK.format(agent="a2", bank="b", feeder="g2", klass="h100", count=8) + second,
    ]
    text = SITE.format(
        limit_w=200_000.0,
        authority="control",
        protocol="",
        feeders="\n".join(feeders),
        banks="\n".join(banks),
        reservation="",
    ).replace(*edit)
    faults = Faults()
    table = StrictTable(tomllib.loads(text), faults)
    site = parse_site(table, faults)
    table.finish()
    faults.raise_if_faulty("the test's site")
    assert site is not None
    return [(bank.name, bank.node, bank.pool) for bank in site.banks]


def test_a_bank_of_pods_has_a_node_and_a_pool() -> None:
    """Both banks are in the cluster, each on its node."""
    second = IN_CLUSTER.replace("n1", "n2")
    assert parse(IN_CLUSTER, second) == [("a1/b", "n1", "pool"), ("a2/b", "n2", "pool")]


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ('workloads = "kubernetes"\n', "give the bank's `node` and its CapacityPool as `pool`"),
        ('workloads = "kubernetes"\nnode = "n1"\n', "give the bank's `node` and its CapacityPool as `pool`"),
        ('node = "n1"\n', 'is for banks with workloads = "kubernetes"'),
        ('workloads = "local"\npool = "pool"\n', 'is for banks with workloads = "kubernetes"'),
        ('workloads = "docker"\nnode = "n1"\npool = "pool"\n', "workloads"),
    ],
)
def test_half_a_place_in_the_cluster_is_refused(first: str, words: str) -> None:
    """A node without a pool, a pool without pods, a word that is none."""
    with pytest.raises(InvalidInput, match=words):
        parse(first, IN_CLUSTER)


def test_machines_that_run_no_pods_are_refused() -> None:
    """ASICs have no pods."""
    with pytest.raises(InvalidInput, match="only GPUs run pods"):
        parse(IN_CLUSTER, IN_CLUSTER.replace("n1", "n2"), klass="s21")


def test_a_class_without_demand_or_tenants_is_refused() -> None:
    """No pod could be sent there, or the agent could not tell miners from customers."""
    second = IN_CLUSTER.replace("n1", "n2")
    with pytest.raises(InvalidInput, match="serves no inference_class"):
        parse(IN_CLUSTER, second, edit=('inference_class = "h100"\n', ""))
    with pytest.raises(InvalidInput, match="'mine' names no workload"):
        parse(IN_CLUSTER, second, edit=('mining = "miner"\n', ""))


def test_a_class_of_demand_that_is_told_in_two_ways_is_refused() -> None:
    """Pods here, local workloads there: nobody could add the two up."""
    with pytest.raises(InvalidInput, match="served by pods and by local workloads"):
        parse(IN_CLUSTER)
