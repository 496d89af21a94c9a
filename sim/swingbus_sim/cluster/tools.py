"""The cluster's programs: built once per version from the modules that `go/go.mod` names, kept in the user's cache.

Two sets, so that a machine without root builds no kubelet: CONTROL (a whole control plane, KWOK, kubectl, helm) and NODES (what real nodes
need besides). A folder is named by the hash of go.mod, go.sum and the flags: change one and all is built anew beside the old.

Never touches the user's Go build cache (4 GB would stay there): the compiler's cache is a folder of our own, deleted afterwards.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from swingbus.faults import OverBudget, WrongState
from swingbus_sim.cluster.go_toolchain import find_go

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
KUBERNETES_VERSION = "v1.37.2"
_MODULE = Path(__file__).with_name("go")
_VERSION_PACKAGE = "k8s.io/component-base/version"
_LINK_FLAGS = (
    f"-s -w -X {_VERSION_PACKAGE}.gitVersion={KUBERNETES_VERSION} -X {_VERSION_PACKAGE}.gitMajor=1"
    f" -X {_VERSION_PACKAGE}.gitMinor=37 -X {_VERSION_PACKAGE}.gitTreeState=clean"
)
_TAGS = "no_btrfs,no_devmapper,no_zfs"
_FREE_NEEDED_BYTES = 8 * 2**30
_SAY_EVERY_S = 20.0


@dataclass(frozen=True, slots=True)
class ToolSet:
    """Programs that are built together: name of the binary and its Go package."""

    name: str
    packages: tuple[tuple[str, str], ...]


CONTROL = ToolSet(
    "control",
    (
        ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
        ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
        ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
        ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
        ("etcd", "go.etcd.io/etcd/server/v3"),  # go names it `server`
        ("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
        ("helm", "helm.sh/helm/v4/cmd/helm"),
    ),
)
NODES = ToolSet(
    "nodes",
    (
        ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
        ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
        ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
        ("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
        ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ("coredns", "github.com/coredns/coredns"),
        ("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
        ("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
        ("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
    ),
)


@dataclass(frozen=True, slots=True)
class Tools:
    """Where each program is."""

    built: Path
    assets: Path | None

    def folders(self) -> tuple[Path, ...]:
        """Return where programs are looked for, first to last."""
        return (self.built,) if self.assets is None else (self.assets, self.built)

    def path(self, program: str) -> Path:
        """Return a program: the one in KUBEBUILDER_ASSETS where that has it, else the one built here."""
        if self.assets is not None and (self.assets / program).exists():
            return self.assets / program
        return self.built / program


def chosen_assets() -> Path | None:
    """Return the folder of ready-made programs that the user named; what it holds is used as it is."""
    assets = os.environ.get(ASSETS_VARIABLE)
    return Path(assets) if assets else None


def tools_version() -> str:
    """Return the name of the folder that today's module and flags are built into."""
    parts = ((_MODULE / "go.mod").read_bytes(), (_MODULE / "go.sum").read_bytes(), f"{_LINK_FLAGS} {_TAGS}".encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def ensure_tools(folder: Path, sets: tuple[ToolSet, ...], *, say: Callable[[str], None]) -> Tools:
    """Return the programs of these sets, building what is not there yet.

    Refuses to begin where the disk has less than 8 GiB free: a build that dies of it leaves nothing to use.
    """
    tools = Tools(built=folder / tools_version(), assets=chosen_assets())
    if all(_missing(tools, wanted) == () for wanted in sets):
        return tools
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "build.lock", say):
        for stale in folder.glob("compile-*"):  # of a build that was killed; nobody else builds now
            shutil.rmtree(stale, ignore_errors=True)
        packages = tuple(p for wanted in sets for p in _missing(tools, wanted))
        if packages:
            _build(folder, tools.built, packages, say)
    return tools


def _missing(tools: Tools, wanted: ToolSet) -> tuple[tuple[str, str], ...]:
    return tuple((program, package) for program, package in wanted.packages if not tools.path(program).exists())


def _build(folder: Path, built: Path, packages: tuple[tuple[str, str], ...], say: Callable[[str], None]) -> None:
    free = shutil.disk_usage(folder).free
    if free < _FREE_NEEDED_BYTES:
        raise OverBudget(
            f"building the cluster's programs needs {_FREE_NEEDED_BYTES / 2**30:.0f} GiB under {folder} for a while and "
            f"{free / 2**30:.1f} are free; make room, or set SWINGBUS_CLUSTER_HOME to a larger disk"
        )
    go = find_go(_MODULE / "go.mod", wheel_folder=folder / "go", say=say)
    work = folder / f"compile-{os.getpid()}"
    say(f"building {len(packages)} programs with {go} (once per version; about 10 minutes on two cores)")
    started = time.monotonic()
    try:
        _install(go, work, tuple(package for _, package in packages), say)
        built.mkdir(parents=True, exist_ok=True)
        for program, package in packages:
            # A whole file or none: a program that is there is one that can run.
            (work / "bin" / _binary_name(package)).replace(built / program)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"built in {time.monotonic() - started:.0f} s: {built}")


def _install(go: Path, work: Path, packages: tuple[str, ...], say: Callable[[str], None]) -> None:
    (work / "bin").mkdir(parents=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("GOFLAGS", "GOWORK", "GOOS", "GOARCH", "GOBIN"))},
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOCACHE": str(work / "cache"),
        "GOBIN": str(work / "bin"),
        "GOTMPDIR": str(work),
        "CGO_ENABLED": "0",
    }
    command = [str(go), "install", "-v", "-trimpath", "-tags", _TAGS, f"-ldflags={_LINK_FLAGS}", *packages]
    process = subprocess.Popen(
        command,
        cwd=_MODULE,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    with process, _told(lines, say):
        assert process.stderr is not None
        try:
            lines.extend(line.rstrip() for line in process.stderr)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # go and the compilers that it started
            raise
    if process.returncode != 0:
        told = "\n".join(line for line in lines if " " in line)[-2000:]  # a lone import path is only progress
        raise WrongState(f"`go install` failed with status {process.returncode} in {_MODULE}: {told}")


@contextmanager
def _told(lines: list[str], say: Callable[[str], None]) -> Iterator[None]:
    """Say how far the compiler is, now and then, while the block runs."""
    done = threading.Event()
    started = time.monotonic()

    def tell() -> None:
        while not done.wait(_SAY_EVERY_S):
            say(f"  {len(lines)} packages after {time.monotonic() - started:.0f} s")

    teller = threading.Thread(target=tell, name="build-progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


@contextmanager
def _alone(lock: Path, say: Callable[[str], None]) -> Iterator[None]:
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another program builds them: waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _binary_name(package: str) -> str:
    """Return how `go install` calls a package's program: its last element that is no major version."""
    parts = [part for part in package.split("/") if not (part[0] == "v" and part[1:].isdigit())]
    return parts[-1]
