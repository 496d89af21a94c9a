"""Giving up root for good, and reading back that it is gone.

Decides in which order rights go and what must be left of them. Refuses to know what the process does afterwards. Invariant: `become`
returns only if the kernel itself says that user, group, groups and capabilities are gone and cannot come back; otherwise it raises.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from swingbus.faults import Forbidden

CAP_SYS_ADMIN = 21  # the driver asks for it before it sets a limit
_LAST_CAP = Path("/proc/sys/kernel/cap_last_cap")
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What the kernel says of a process; sets of capabilities are bit masks."""

    users: tuple[int, ...]  # real, effective, saved, file system
    groups: tuple[int, ...]
    supplementary: tuple[int, ...]
    inheritable: int
    permitted: int
    effective: int
    bounding: int
    ambient: int
    has_no_new_privileges: bool


def read_rights(pid: int | str = "self") -> Rights:
    """Return the rights of a process of this host."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    facts = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}

    def mask(name: str) -> int:
        return int(facts[name][0], 16)

    return Rights(
        users=tuple(int(each) for each in facts["Uid"]),
        groups=tuple(int(each) for each in facts["Gid"]),
        supplementary=tuple(int(each) for each in facts["Groups"]),
        inheritable=mask("CapInh"),
        permitted=mask("CapPrm"),
        effective=mask("CapEff"),
        bounding=mask("CapBnd"),
        ambient=mask("CapAmb"),
        has_no_new_privileges=facts["NoNewPrivs"] == ["1"],
    )


def keep_only(capabilities: Collection[int]) -> None:
    """Give up every capability but these (of those that are there), and any way to gain one by running a program."""
    _drop_bounding(capabilities)
    wanted = sum(1 << number for number in capabilities)
    _set_capabilities(read_rights().permitted & wanted)
    _refuse_new_privileges()


def become(user: int, group: int) -> None:
    """Become this user and group for good.

    Raises:
        Forbidden: the kernel did not let everything go; the process must not go on.
    """
    try:
        _drop_bounding(())
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        _set_capabilities(0)
        _refuse_new_privileges()
    except OSError as error:
        raise Forbidden(
            f"the agent cannot become user {user}, group {group}: {error}; its container needs the capabilities SETUID and SETGID, "
            "or remove run_as_user",
            reason="RIGHTS_NOT_DROPPED",
        ) from error
    left = _left_over(read_rights(), user, group)
    if left:
        raise Forbidden(
            f"after becoming user {user} the agent still has {left}; it must not go on", reason="RIGHTS_NOT_DROPPED"
        )


def _left_over(rights: Rights, user: int, group: int) -> str:
    if set(rights.users) != {user} or set(rights.groups) != {group}:
        return f"users {rights.users} and groups {rights.groups}"
    if set(rights.supplementary) - {group}:
        return f"supplementary groups {rights.supplementary}"
    if rights.inheritable | rights.permitted | rights.effective | rights.ambient:
        return "capabilities"
    if not rights.has_no_new_privileges:
        return "a way to gain privileges"
    return ""


def _drop_bounding(kept: Collection[int]) -> None:
    """Empty the bounding set as far as the kernel lets us: without SETPCAP it does not, and no_new_privs makes up for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(int(_LAST_CAP.read_text(encoding="ascii")) + 1):
        if number not in kept and libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)


def _set_capabilities(mask: int) -> None:
    """Set the effective and permitted capabilities; none is inheritable, which also takes the ambient ones away."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    sets = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    if libc.capset(header, sets) != 0:
        _raise_errno("capset")


def _refuse_new_privileges() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        _raise_errno("no_new_privs")


def _raise_errno(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
