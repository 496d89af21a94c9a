"""Lifts gates by hand: what `swingbus-controller gate` does in a cluster, with the caller's own rights.

Decides nothing about watts. Invariant: each pod is lifted as it was looked at or not at all, and carries why.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from swingbus.clock import SystemClock
from swingbus.faults import NotFound
from swingbus_controller.adapters.kubernetes.answers import KubeApi, decode
from swingbus_controller.adapters.kubernetes.connection import ActAs, ApiConnection, ConnectionSettings
from swingbus_controller.adapters.kubernetes.facts import unix_s
from swingbus_controller.adapters.kubernetes.kubeconfig import load_kubeconfig
from swingbus_controller.adapters.kubernetes.objects import Pod
from swingbus_controller.adapters.kubernetes.own_objects import ListMeta
from swingbus_controller.adapters.kubernetes.pod_writes import Lifted, LiftRefused, lift_gate
from swingbus_controller.adapters.kubernetes.resources import PODS, ApiCall
from swingbus_controller.adapters.kubernetes.writing import Writer
from swingbus_controller.pki_commands import print_table

BY_HAND_MARK, REASON_MARK = "swingbus.io/lifted-by-hand", "swingbus.io/lifted-because"
_PAGE = 500


class _Page(msgspec.Struct, frozen=True):
    metadata: ListMeta
    items: tuple[Pod, ...] = ()


class _AlwaysPermitted:
    """A person needs no lease."""

    def left_s(self) -> float:
        return float("inf")


_PAGES = msgspec.json.Decoder(_Page)


async def list_gated(kubeconfig: Path, context: str | None, gate: str, *, as_json: bool) -> int:
    """Print who waits behind a gate."""
    async with ApiConnection(await load_kubeconfig(kubeconfig, context)) as api:
        waiting = await gated_pods(api, gate)
    now_s = SystemClock().now().timestamp()
    rows = [_row(pod, gate, now_s) for pod in waiting]
    if as_json:
        print(json.dumps(rows))
    elif not rows:
        print(f"nobody waits behind {gate}")
    else:
        shown = [
            (f"{r['namespace']}/{r['pod']}", str(r["gpus"]), f"{r['waits_s']} s", str(r["other_gates"] or "-"))
            for r in rows
        ]
        print_table(("POD", "GPUS", "WAITS", "OTHER GATES"), shown, sys.stdout)
    return 0


async def lift_named(
    kubeconfig: Path,
    context: str | None,
    gate: str,
    names: Sequence[str] | None,
    *,
    reason: str,
    act_as: ActAs | None = None,
) -> int:
    """Lift the gate of named pods (`namespace/name`), or of all where none is named; return an exit code.

    Raises NotFound where a named one does not wait; then nothing was lifted.
    """
    settings = ConnectionSettings(act_as=act_as)
    async with ApiConnection(await load_kubeconfig(kubeconfig, context), settings) as api:
        waiting = {f"{pod.metadata.namespace}/{pod.metadata.name}": pod for pod in await gated_pods(api, gate)}
        missing = sorted(set(names or ()) - set(waiting))
        if missing:
            raise NotFound(
                f"no pod {', '.join(missing)} waits behind {gate}; `swingbus-controller gate list` shows who does",
                reason="NOT_GATED",
            )
        writer = Writer(api, _AlwaysPermitted(), SystemClock())
        left = 0
        for name in sorted(waiting) if names is None else names:
            marks = {BY_HAND_MARK: SystemClock().now().strftime("%Y-%m-%dT%H:%M:%SZ"), REASON_MARK: reason[:500]}
            outcome = await lift_gate(writer, waiting[name], gate=gate, node_selector={}, annotations=marks)
            match outcome:
                case Lifted():
                    print(f"lifted {name}")
                case LiftRefused(message=message):
                    left += 1
                    print(f"refused {name}: {message}; are you in the break-glass group?", file=sys.stderr)
                case _:
                    left += 1
                    print(f"{name} has changed meanwhile or is gone: list again", file=sys.stderr)
    return 1 if left else 0


async def gated_pods(api: KubeApi, gate: str) -> list[Pod]:
    """Return every pod of the cluster that carries a gate, the longest waiting first."""
    found: list[Pod] = []
    token = ""
    while True:
        query = {"limit": str(_PAGE), **({"continue": token} if token else {})}
        call = ApiCall(verb="list", resource=PODS, query=query)
        page = decode(await api.call(call), _PAGES, call)
        found += [pod for pod in page.items if gate in pod.gates]
        token = page.metadata.continue_
        if not token:
            return sorted(found, key=lambda pod: (pod.metadata.creation_timestamp or "", pod.key))


def _row(pod: Pod, gate: str, now_s: float) -> dict[str, Any]:
    made_s = unix_s(pod.metadata.creation_timestamp)
    return {
        "namespace": pod.metadata.namespace,
        "pod": pod.metadata.name,
        "gpus": pod.devices("nvidia.com/gpu"),
        "waits_s": None if made_s is None else max(0, round(now_s - made_s)),
        "other_gates": ", ".join(each for each in pod.gates if each != gate),
    }
