"""Whether a bank of the site file, its node and its pool belong together; where they do not, nothing is moved there.

Decides why a bank is frozen, in an operator's words. Refuses to mend anything. Invariant: of several reasons the one to mend first is told.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from swingbus_controller.domain.cluster.facts import ClusterNode, Pool, PoolMode


def why_frozen(
    *,
    site: str,
    feeders: Collection[str],
    node_name: str,
    pool_name: str,
    node: ClusterNode | None,
    pools: Iterable[Pool],
) -> str:
    """Return why no pod of a bank may be moved, empty where pods may be.

    Args:
        site: the site file's name.
        feeders: the bank's feeder and those above it.
        pools: every pool that there is.
    """
    known = list(pools)
    pool = next((each for each in known if each.name == pool_name), None)
    if pool is None:
        return f"PoolMissing: there is no CapacityPool {pool_name}; create it, or name another one at this bank in the site file"
    if pool.site != site:
        return f"SiteDiffers: pool {pool_name} is of site {pool.site}, this controller runs {site}"
    if pool.container not in feeders:
        return f"ContainerDiffers: pool {pool_name} is of container {pool.container}, the bank hangs on {', '.join(feeders)}"
    if node is None:
        return f"NodeMissing: there is no node {node_name}; it left the cluster, or the site file names another one"
    claiming = sorted(each.name for each in known if each.selects(node))
    if len(claiming) > 1:
        return f"PoolsOverlap: pools {', '.join(claiming)} select node {node_name}; make their nodeSelectors differ"
    if not claiming:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(pool.node_selector.items()))
        return f"NodeNotSelected: node {node_name} lacks labels of pool {pool_name}: {labels}"
    if node.is_unschedulable:
        return f"NodeCordoned: node {node_name} is cordoned, its pods are somebody else's to move; uncordon it when it may work again"
    if not node.is_ready:
        return f"NodeNotReady: the kubelet of node {node_name} does not answer, no pod there can be started or ended; look at its host"
    if pool.mode is PoolMode.ADVISORY:
        return f"Advisory: pool {pool_name} plans and changes nothing; set spec.mode to Auto to let it"
    return ""
