"""The control plane: etcd, API server, controller-manager, scheduler, each a process with a certificate of its own.

Decides flags and order. RBAC is on; etcd accepts only the API server's certificate. In a cluster without real nodes all listen on
loopback; with them all live in a network namespace of their own, where the API server also listens on the bridge.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from swingbus.faults import OverBudget
from swingbus_sim.cluster.api import Api
from swingbus_sim.cluster.certificates import Authority, Pair, write_service_account_keys
from swingbus_sim.cluster.kubeconfig import write_kubeconfig
from swingbus_sim.cluster.layout import API_SERVICE_ADDRESS, DOMAIN, POD_RANGE, SERVICE_RANGE, Layout
from swingbus_sim.cluster.processes import Processes
from swingbus_sim.cluster.tools import Tools

_LOOPBACK = "127.0.0.1"
_SERVER_PORTS = range(20_000, 32_000)
_READY_TIMEOUT_S = 60.0
# Kernels that weigh sessions against each other (autogroup) look at a session's own niceness; others, and cgroups, at the process's.
_GOES_FIRST = ("sh", "-c", '{ echo -10 > /proc/$$/autogroup; } 2> /dev/null; exec nice -n -10 "$0" "$@"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Where each part listens."""

    api: int
    etcd: int
    etcd_peer: int
    controllers: int
    scheduler: int


FIXED_PORTS = Ports(api=6443, etcd=2379, etcd_peer=2380, controllers=10257, scheduler=10259)


def free_ports() -> Ports:
    """Return ports that nobody on loopback listens on now; all are held until the last is found, so none comes twice.

    They lie below those that the kernel lends to outgoing connections: a server that is restarted would find its own taken by a client
    that knocks there meanwhile.
    """
    sockets: list[socket.socket] = []
    try:
        for number in random.sample(_SERVER_PORTS, len(_SERVER_PORTS)):
            one = socket.socket()
            try:
                one.bind((_LOOPBACK, number))
            except OSError:
                one.close()
                continue
            sockets.append(one)
            if len(sockets) == 5:
                break
        numbers = [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
    if len(numbers) < 5:
        raise OverBudget("no five ports are free on loopback; end what listens there")
    api, etcd, etcd_peer, controllers, scheduler = numbers
    return Ports(api=api, etcd=etcd, etcd_peer=etcd_peer, controllers=controllers, scheduler=scheduler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What the cluster's programs show each other."""

    authority: Authority
    etcd_authority: Authority
    api_server: Pair
    etcd: Pair
    admin: Pair
    service_accounts: Pair


def make_keys(layout: Layout, *, address: str) -> Keys:
    """Make the authorities and the control plane's own certificates."""
    folder = layout.certificates
    authority = Authority(folder, name="cluster")
    # Not etcd's own name: where issuer and subject are called the same, OpenSSL takes a certificate for a self-signed one.
    etcd_authority = Authority(folder, name="etcd-authority")
    names = (
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{DOMAIN}",
        "localhost",
    )
    return Keys(
        authority=authority,
        etcd_authority=etcd_authority,
        api_server=authority.issue(
            "kube-apiserver", user="kube-apiserver", hosts=(*names, _LOOPBACK, address, API_SERVICE_ADDRESS)
        ),
        etcd=etcd_authority.issue("etcd-server", user="etcd", hosts=("localhost", _LOOPBACK)),
        admin=authority.issue("admin", user="admin", groups=("system:masters",)),
        service_accounts=write_service_account_keys(folder),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """One control plane before it is started.

    Args:
        address: where the API server answers besides loopback; loopback where there is no bridge.
        enter: the command that runs another one in the control plane's network namespace; empty on the host's own loopback.
        audited_users: whose every request the API server writes into `layout.audit_log`, a line each.
    """

    layout: Layout
    tools: Tools
    processes: Processes
    keys: Keys
    ports: Ports
    address: str
    enter: tuple[str, ...]
    audited_users: tuple[str, ...] = ()

    @property
    def server(self) -> str:
        """The API server's address for programs beside it."""
        return f"https://{self.address}:{self.ports.api}"

    def kubeconfig(self, name: str, *, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Issue a certificate for a program and return its kubeconfig."""
        pair = self.keys.authority.issue(name, user=user, groups=groups)
        return write_kubeconfig(
            self.layout.kubeconfigs / name, server=self.server, authority=self.keys.authority.certificate, user=pair
        )

    def start(self, api: Api, say: Callable[[str], None]) -> None:
        """Start all and return when the API server answers and the other two have begun."""
        self._start_etcd()
        self._start_api_server()
        say("etcd and API server started")

        def answers() -> bool:
            self.processes.must_run(
                "etcd"
            )  # without it the API server would hang on for half a minute and blame the network
            return api.is_ready()

        self.processes.wait_ready("kube-apiserver", answers, timeout_s=_READY_TIMEOUT_S)
        say("API server is ready")
        for name, port in (
            ("kube-controller-manager", self.ports.controllers),
            ("kube-scheduler", self.ports.scheduler),
        ):
            own = self.kubeconfig(name, user=f"system:{name}")
            specific = self._controllers() if name == "kube-controller-manager" else ()
            self._start(
                name,
                (
                    f"--kubeconfig={own}",
                    f"--authentication-kubeconfig={own}",
                    f"--authorization-kubeconfig={own}",
                    f"--bind-address={_LOOPBACK}",
                    f"--secure-port={port}",
                    f"--tls-cert-file={self.keys.api_server.certificate}",
                    f"--tls-private-key-file={self.keys.api_server.key}",
                    "--leader-elect=false",
                    "--kube-api-qps=500",
                    "--kube-api-burst=1000",
                    *specific,
                ),
            )

    def _start_etcd(self) -> None:
        # Its data need not survive the machine, so it never waits for the disk.
        own = self.keys.etcd
        client, peer = f"https://{_LOOPBACK}:{self.ports.etcd}", f"https://{_LOOPBACK}:{self.ports.etcd_peer}"
        self._start(
            "etcd",
            (
                f"--data-dir={self.layout.run / 'etcd'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                f"--cert-file={own.certificate}",
                f"--key-file={own.key}",
                f"--trusted-ca-file={self.keys.etcd_authority.certificate}",
                "--client-cert-auth",
                f"--peer-cert-file={own.certificate}",
                f"--peer-key-file={own.key}",
                f"--peer-trusted-ca-file={self.keys.etcd_authority.certificate}",
                "--peer-client-cert-auth",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ),
        )

    def _start_api_server(self) -> None:
        keys = self.keys
        kubelet_client = keys.authority.issue("kubelet-client", user="swingbus:kubelet-client")
        self._start(
            "kube-apiserver",
            (
                f"--etcd-servers=https://{_LOOPBACK}:{self.ports.etcd}",
                f"--etcd-cafile={keys.etcd_authority.certificate}",
                f"--etcd-certfile={keys.etcd.certificate}",
                f"--etcd-keyfile={keys.etcd.key}",
                # In its own namespace: every address there (loopback and the bridge). Else loopback alone.
                f"--bind-address={'0.0.0.0' if self.enter else _LOOPBACK}",
                f"--advertise-address={self.address}",
                # Pods can reach the API by its service name only where there is a bridge.
                f"--endpoint-reconciler-type={'lease' if self.enter else 'none'}",
                f"--secure-port={self.ports.api}",
                f"--tls-cert-file={keys.api_server.certificate}",
                f"--tls-private-key-file={keys.api_server.key}",
                f"--client-ca-file={keys.authority.certificate}",
                f"--service-account-key-file={keys.service_accounts.certificate}",
                f"--service-account-signing-key-file={keys.service_accounts.key}",
                f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
                f"--service-cluster-ip-range={SERVICE_RANGE}",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction",
                "--allow-privileged=true",
                "--kubelet-preferred-address-types=InternalIP",
                f"--kubelet-certificate-authority={keys.authority.certificate}",
                f"--kubelet-client-certificate={kubelet_client.certificate}",
                f"--kubelet-client-key={kubelet_client.key}",
                *self._audit(),
            ),
        )

    def _audit(self) -> Sequence[str]:
        if not self.audited_users:
            return ()
        rules = [
            {"level": "Metadata", "users": list(self.audited_users), "omitStages": ["RequestReceived"]},
            {"level": "None"},
        ]
        policy = self.layout.run / "audit-policy.json"
        policy.write_text(json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": rules}))
        # One file: what was rotated away would be missing from the count.
        size = "--audit-log-maxsize=10240"
        return (f"--audit-policy-file={policy}", f"--audit-log-path={self.layout.audit_log}", size)

    def _controllers(self) -> Sequence[str]:
        keys = self.keys
        return (
            f"--root-ca-file={keys.authority.certificate}",
            f"--service-account-private-key-file={keys.service_accounts.key}",
            "--use-service-account-credentials=true",
            f"--cluster-cidr={POD_RANGE}",
            "--allocate-node-cidrs=false",
        )

    def _start(self, name: str, flags: Sequence[str]) -> None:
        # Beside real nodes it goes first, as on machines of its own. Else kubelets of a busy machine ask for a pod's volumes before the API
        # server has noted that the pod is theirs, are refused, and try again only 10 s later.
        enter = (*self.enter, *_GOES_FIRST) if self.enter else ()
        self.processes.start(name, (str(self.tools.path(name)), *flags), enter=enter)
