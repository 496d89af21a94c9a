"""What a site file says of banks whose workloads are pods: where they are in the cluster, and what must hold for that to make sense.

Decides which combinations are faults. Refuses to know the cluster. Invariant: a bank has both a node and a pool, or neither.
"""

from __future__ import annotations

from collections.abc import Mapping

from swingbus_controller.domain.planning.points import DeviceKind, Mode
from swingbus_controller.domain.site.sitefile import DeviceClass, SiteBank
from swingbus_controller.domain.site.strict_table import StrictTable


def place_in_cluster(table: StrictTable) -> tuple[str, str]:
    """Return node and pool of a bank whose workloads are pods; both empty for one whose agent runs programs."""
    workloads = table.text("workloads", "local", choices=("local", "kubernetes"))
    node, pool = table.text("node", ""), table.text("pool", "")
    if workloads == "kubernetes" and not (node and pool):
        table.fault("workloads", "pods need a place: give the bank's `node` and its CapacityPool as `pool`")
        return "", ""
    if workloads != "kubernetes" and (node or pool):
        table.fault("node" if node else "pool", 'is for banks with workloads = "kubernetes"')
        return "", ""
    return node, pool


def check_pods_can_run(table: StrictTable, device_class: DeviceClass) -> None:
    """Refuse pods on devices that run none, or whose tenants could not be told apart."""
    if device_class.kind is not DeviceKind.GPU:
        table.fault("workloads", "only GPUs run pods; ASICs mine under their agent")
    elif not device_class.inference_class:
        table.fault("workloads", f"class {device_class.name!r} serves no inference_class: no pod could be sent there")
    for point in device_class.points:
        if point.mode in (Mode.MINING, Mode.INFERENCE) and not (
            point.workload or device_class.workloads.get(point.mode)
        ):
            table.fault("workloads", f"point {point.name!r} names no workload: the agent tells tenants apart by it")


def check_classes_of_demand(
    tables: tuple[StrictTable, ...], banks: list[SiteBank], classes: Mapping[str, DeviceClass]
) -> None:
    """Refuse a class of demand that is told by pods here and by a signal there: nobody could add the two up."""
    places: dict[str, set[bool]] = {}
    for bank in banks:
        if name := classes[bank.device_class].inference_class:
            places.setdefault(name, set()).add(bank.is_in_cluster)
    for name, kinds in places.items():
        if len(kinds) > 1:
            tables[0].fault(
                "workloads",
                f"inference class {name!r} is served by pods and by local workloads: give the pods a class of their own",
            )
