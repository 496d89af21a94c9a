"""The Debian package: installed by dpkg on a fresh host, started by that host's own systemd as its units say, upgraded, removed, purged.

The tests of the host go on from one another, in this order. Fetching happens while package and root are built; the host itself has no
network but loopback.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping

import pytest

from swingbus_sim.nvml.build import CACHE_VARIABLE, ROOT_ONLY_VARIABLE, SHELF_VARIABLE
from tests.fakes.debian_host import DebianHost, booted, missing_for_host
from tests.fakes.debian_root import debian_root
from tests.fakes.gpu_host import GpuHost
from tools.deb.package import DEFAULT_FOLDER, BuiltPackage, build_package

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]  # the first run fetches packages and wheels

UNITS = ("swingbus-agent.service", "swingbus-controller.service", "swingbus-floor.service")
# What `systemd-analyze security` says at most, in tenths: 0 is closed, 100 open. The agent needs driver, network and, for a moment, root.
EXPOSURE_MAX: Mapping[str, int] = dict(zip(UNITS, (35, 12, 20), strict=True))
_AS_CONTROLLER = ("setpriv", "--reuid=swingbus", "--regid=swingbus", "--init-groups")
_INSTALL = ("dpkg", "--force-unsafe-io", "--install", "/swingbus.deb")  # a disk that nobody needs after a power cut
_GPUS = "/srv/gpus"
_SYS_ADMIN = 1 << 21


def _quiet(words: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def package() -> BuiltPackage:
    """Return the package of this checkout."""
    for program in ("dpkg-deb", "apt-get"):
        if shutil.which(program) is None:
            pytest.skip(f"NOT TESTED HERE: the package is built on Debian, this machine has no {program}")
    return build_package(DEFAULT_FOLDER, say=_quiet)


@pytest.fixture(scope="module")
def host(package: BuiltPackage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianHost]:
    """Return a host that runs, with the package's file at /swingbus.deb, not installed."""
    if lacks := missing_for_host():
        pytest.skip(f"NOT TESTED HERE: {lacks}")
    folder = tmp_path_factory.mktemp("host")
    root = debian_root(folder, _quiet)
    shutil.copyfile(package.file, root / "swingbus.deb")
    with booted(root, name=f"swingbus-test-host-{time.time_ns()}") as host:
        yield host
    shutil.rmtree(folder)


def _names(package: BuiltPackage) -> set[str]:
    lines = subprocess.check_output(("dpkg-deb", "--contents", str(package.file)), text=True).splitlines()
    return {line.split(maxsplit=5)[5].split(" -> ")[0].removeprefix(".") for line in lines}


def test_package_holds_its_programs_compiled_and_no_configuration(package: BuiltPackage) -> None:
    """Byte code beside every module of ours, nothing of the simulator, nothing below /etc but an empty folder, links to programs."""
    names = _names(package)
    ours = {name for name in names if "-packages/swing" in name and name.endswith(".py")}
    compiled = {
        f"{folder}/{file.split('.')[0]}.py"
        for name in names
        if name.endswith(".pyc")
        for folder, file in [name.split("/__pycache__/")]
    }
    assert len(ours) > 200 and ours <= compiled
    assert not [name for name in names if "swingbus_sim" in name]
    assert {name for name in names if name.startswith("/etc/")} == {"/etc/", "/etc/swingbus/"}
    assert {f"/usr/bin/{name}" for name in ("swingbus-agent", "swingbus-controller", "swingctl")} <= names
    assert {f"/usr/lib/systemd/system/{unit}" for unit in UNITS} <= names
    fields = subprocess.check_output(("dpkg-deb", "--field", str(package.file), "Depends", "Version"), text=True)
    assert "python3." in fields and "libc6 (>= 2." in fields and package.version in fields


def test_same_sources_give_the_same_bytes(package: BuiltPackage) -> None:
    """Built once more."""
    before = package.file.read_bytes()
    assert build_package(DEFAULT_FOLDER, say=_quiet).file.read_bytes() == before


def test_installing_enables_and_starts_nothing(host: DebianHost) -> None:
    """Both users are there, locked; no unit is enabled or runs; what dpkg installed is what was packed."""
    host.run(*_INSTALL)
    assert host.run("dpkg", "--verify", "swingbus") == ""
    for unit in UNITS:
        assert host.try_run("systemctl", "is-enabled", unit).stdout.strip() == "disabled"
        assert host.show(unit, "ActiveState") == "inactive"
    users = {line.split(":")[0]: line for line in (host.root / "etc" / "passwd").read_text().splitlines()}
    assert all(users[name].endswith("/usr/sbin/nologin") for name in ("swingbus", "swingbus-agent"))
    assert (
        host.run("stat", "--format=%U %a", "/var/lib/swingbus", "/var/lib/swingbus-agent") == "swingbus 750\nroot 700\n"
    )


def test_units_are_right_and_as_closed_as_they_can_be(host: DebianHost) -> None:
    """By systemd's own programs, on the host, where all that the units name is there."""
    said = host.try_run("systemd-analyze", "verify", *UNITS)
    assert said.returncode == 0 and said.stderr == ""
    for unit, exposure in EXPOSURE_MAX.items():
        done = host.try_run("systemd-analyze", "security", "--offline=true", f"--threshold={exposure}", unit)
        assert done.returncode == 0, done.stdout
        print(done.stdout.splitlines()[-1])


def test_faulty_file_waits_for_a_person(host: DebianHost) -> None:
    """Exit code 2, said in the journal, and no restart."""
    (host.root / "etc" / "swingbus" / "agent.toml").write_text('nmae = "edge-1"\n')
    host.run("systemctl", "start", "swingbus-agent.service")
    text = host.until_logged("swingbus-agent.service", "Failed with result")
    assert "nmae" in text
    assert host.show("swingbus-agent.service", "ActiveState") == "failed"
    assert host.show("swingbus-agent.service", "NRestarts") == "0"


def test_agent_reaches_its_controller_in_their_units(host: DebianHost) -> None:
    """From the examples, by the words of docs/install-host.md; each as its own user, without a capability."""
    for name in ("agent.toml", "site.toml"):
        host.run("cp", f"/usr/share/doc/swingbus/examples/{name}", f"/etc/swingbus/{name}")
    # One that decides needs more of its system than one that only looks.
    site = host.root / "etc" / "swingbus" / "site.toml"
    site.write_text(site.read_text().replace('authority = "observe"', 'authority = "control"'))
    host.run("swingbus-controller", "check", "--config", "/etc/swingbus/site.toml")
    host.run("swingbus-agent", "check", "--config", "/etc/swingbus/agent.toml")
    host.run(*_AS_CONTROLLER, "swingbus-controller", "init", "--name", "127.0.0.1")
    for words, bundle in ((("--agent", "edge-1"), "edge-1"), (("--operator", "dana", "--role", "admin"), "dana")):
        issue = ("swingbus-controller", "certificate", "issue", *words, f"--out=/var/lib/swingbus/{bundle}.bundle.toml")
        host.run(*_AS_CONTROLLER, *issue)
    host.run("swingbus-agent", "join", "/var/lib/swingbus/edge-1.bundle.toml", "--config", "/etc/swingbus/agent.toml")
    # Named only now: what root put into the folder until then becomes the user's.
    user = host.run("id", "--user", "swingbus-agent").strip()
    file = host.root / "etc" / "swingbus" / "agent.toml"
    file.write_text(file.read_text().replace("# run_as_user = 998", f"run_as_user = {user}"))
    host.run("systemctl", "start", "swingbus-controller.service", "swingbus-agent.service")
    _until_live(host)
    for unit, owner in (("swingbus-agent.service", user), ("swingbus-controller.service", "swingbus")):
        status = _status(host, int(host.show(unit, "MainPID")))
        number = host.run("id", "--user", owner).strip() if owner == "swingbus" else owner
        assert status["Uid"].split() == [number] * 4
        assert (int(status["CapEff"], 16), int(status["CapPrm"], 16)) == (0, 0)
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_restarts_and_upgrades_keep_state_and_its_owners(host: DebianHost) -> None:
    """A second installation starts again what ran; neither systemd nor the package gives a folder to somebody else."""
    before = {unit: host.show(unit, "MainPID") for unit in UNITS[:2]}
    epochs = host.log("swingbus-controller.service").count('"controller_started"')
    host.run(*_INSTALL)
    after = {unit: host.show(unit, "MainPID") for unit in UNITS[:2]}
    assert all(after[unit] not in ("0", before[unit]) for unit in before)
    assert host.show("swingbus-floor.service", "ActiveState") == "inactive"
    host.until_logged("swingbus-controller.service", '"epoch": 2')
    assert host.log("swingbus-controller.service").count('"controller_started"') == epochs + 1
    _until_live(host)
    owners = {
        "/var/lib/swingbus/pki/ca-key.pem": "swingbus 600",
        "/var/lib/swingbus-agent": "swingbus-agent 700",
        "/var/lib/swingbus-agent/bundle/bundle.toml": "swingbus-agent 600",
    }
    for path, owner in owners.items():
        assert host.run("stat", "--format=%U %a", path).strip() == owner


def test_limits_are_set_inside_the_sandbox(host: DebianHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The floor's unit sets and reads back every GPU; the agent parts from root and its child alone keeps SYS_ADMIN."""
    folder = host.root / _GPUS.lstrip("/")
    folder.mkdir()
    monkeypatch.setenv(CACHE_VARIABLE, str(folder / "library"))
    gpus = GpuHost(folder / "shelf", 2)
    (folder / "shelf").chmod(0o666)
    (folder / "library").chmod(0o755)
    words = {
        "LD_LIBRARY_PATH": gpus.environment["LD_LIBRARY_PATH"].split(":")[0].removeprefix(str(host.root)),
        SHELF_VARIABLE: f"{_GPUS}/shelf",
        ROOT_ONLY_VARIABLE: "1",
    }
    # The stand-in is a file, where the driver would be a device.
    drop_in = f"[Service]\nReadWritePaths={_GPUS}\n" + "".join(f"Environment={k}={v}\n" for k, v in words.items())
    for unit in ("swingbus-agent.service", "swingbus-floor.service"):
        place = host.root / "etc" / "systemd" / "system" / f"{unit}.d" / "gpus.conf"
        place.parent.mkdir(parents=True)
        place.write_text(drop_in)
    file = host.root / "etc" / "swingbus" / "agent.toml"
    bank = '\n[[bank]]\nname = "h100"\nkind = "gpu"\nclass = "h100-sxm"\n'
    file.write_text(file.read_text().replace("writes = false", "writes = true") + bank)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "--no-block", "swingbus-floor.service")
    deadline_s = time.monotonic() + 30.0
    while host.show("swingbus-floor.service", "SubState") == "start" or gpus.shelf.requested_limits_w()[1] is None:
        for index, limit_w in enumerate(gpus.shelf.requested_limits_w()):
            if limit_w is not None and gpus.readings[index].enforced_limit_w != limit_w:
                gpus.change(index, enforced_limit_w=limit_w, requested_limit_w=limit_w)
        assert time.monotonic() < deadline_s, host.log("swingbus-floor.service")
    assert host.show("swingbus-floor.service", "Result") == "success", host.log("swingbus-floor.service")
    assert gpus.shelf.requested_limits_w() == (200.0, 200.0)

    host.run("systemctl", "restart", "swingbus-agent.service")
    host.until_logged("swingbus-agent.service", '"may_limit": true')
    (keeper,) = [pid for pid in _inside(host, "swingbus-agent.service") if "privileged.keeper" in _command(host, pid)]
    status = _status(host, keeper)
    assert (int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"]) == (_SYS_ADMIN, "1", "2")
    assert int(_status(host, int(host.show("swingbus-agent.service", "MainPID")))["CapPrm"], 16) == 0
    gpus.close()


def test_workloads_run_on_when_the_agent_stops(host: DebianHost) -> None:
    """What it started to do its own work ends with it; what it started for others stays, in the same sandbox's group."""
    group = f"/sys/fs/cgroup{host.show('swingbus-agent.service', 'ControlGroup')}/cgroup.procs"
    host.run("sh", "-c", f"echo $$ > {group}; sleep 600 > /dev/null 2>&1 &")  # as any child of the agent is there
    host.run("systemctl", "stop", "swingbus-agent.service")
    deadline_s = time.monotonic() + 10.0
    while len(left := [_command(host, pid) for pid in _inside(host, "swingbus-agent.service", group)]) > 1:
        assert time.monotonic() < deadline_s, left
        time.sleep(0.1)
    assert left == ["sleep 600"]
    host.run("systemctl", "start", "swingbus-agent.service")
    _until_live(host)


def test_removed_package_leaves_state_and_purged_one_only_what_people_wrote(host: DebianHost) -> None:
    """Units are stopped and disabled first; purging takes journal, keys and spool; users stay."""
    host.run("systemctl", "enable", *UNITS)
    host.run("dpkg", "--remove", "swingbus")
    assert not (host.root / "opt" / "swingbus").exists()
    assert not list((host.root / "usr" / "bin").glob("swing*"))
    assert not list((host.root / "etc" / "systemd" / "system").rglob("*.wants/swingbus-*"))
    assert host.run("systemctl", "list-units", "--no-legend", "--state=active", "swingbus*") == ""
    assert (host.root / "var/lib/swingbus/data/journal.sqlite").exists()
    assert (host.root / "var/lib/swingbus/pki/ca-key.pem").exists()
    assert (host.root / "var/lib/swingbus-agent/bundle/bundle.toml").exists()
    host.run("dpkg", "--purge", "swingbus")
    assert not list((host.root / "var" / "lib").glob("swingbus*"))
    assert {path.name for path in (host.root / "etc" / "swingbus").iterdir()} == {"agent.toml", "site.toml"}
    assert "swingbus:" in (host.root / "etc" / "passwd").read_text()
    host.run("dpkg", "--purge", "swingbus")  # once more harms nothing


def _until_live(host: DebianHost, *, timeout_s: float = 30.0) -> None:
    """Wait until the controller hears the agent, as an operator sees it."""
    listing = ("swingctl", "--bundle", "/var/lib/swingbus/dana.bundle.toml", "agent", "list")
    deadline_s = time.monotonic() + timeout_s
    while " live " not in (done := host.try_run(*listing)).stdout:
        assert time.monotonic() < deadline_s, done.stdout + done.stderr + host.log("swingbus-agent.service")
        time.sleep(0.2)


def _status(host: DebianHost, pid: int) -> dict[str, str]:
    lines = host.run("cat", f"/proc/{pid}/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _inside(host: DebianHost, unit: str, group: str | None = None) -> list[int]:
    """Return the processes of a unit."""
    file = group or f"/sys/fs/cgroup{host.show(unit, 'ControlGroup')}/cgroup.procs"
    return [int(pid) for pid in host.run("cat", file).split()]


def _command(host: DebianHost, pid: int) -> str:
    """Return what a process was started as; empty where it has ended."""
    return host.try_run("cat", f"/proc/{pid}/cmdline").stdout.replace("\0", " ").strip()
