"""Part the agent from root at its start: what needs root goes to a child, and the agent becomes the user that its file names.

Decides whether there is anything to part, and in which order: rules from the file, the child, the state folder, then root is gone. Must
run before there are threads or an event loop, for rights belong to threads. Invariant: after it returned a link, this process has
no right left; where it cannot part although the file wants it, the agent does not start.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from swingbus.faults import Forbidden
from swingbus_agent.adapters.privileged.link import KeeperLink, start_keeper
from swingbus_agent.adapters.privileged.rights import become
from swingbus_agent.adapters.privileged.words import Rules
from swingbus_agent.domain.readings import Kind
from swingbus_agent.settings import AgentSettings

_log = structlog.get_logger()


def rules_of(settings: AgentSettings) -> Rules:
    """Return what the child may do for this file."""
    banks = [bank for bank in settings.banks if bank.kind is Kind.GPU]
    takes_all = any(not bank.gpus for bank in banks)
    return Rules(
        may_limit=settings.writes and bool(banks),
        gpus=() if takes_all else tuple(uuid for bank in banks for uuid in bank.gpus),
        kubelet_socket=str(settings.pods.socket) if any(bank.runs_pods for bank in banks) else "",
    )


def part_from_root(settings: AgentSettings) -> KeeperLink | None:
    """Start the child and give root up, where the file says so; None where the agent goes on as it was started.

    Raises:
        Forbidden: root cannot be given up, or the state folder is somebody else's.
        Unreachable: the child does not begin.
    """
    node = settings.node
    if not node.run_as_user:
        return None
    if os.geteuid() != 0:
        _log.warning(
            "privileges_not_parted",
            user=os.geteuid(),
            message="node.run_as_user is set, but the agent was not started as root: there is no privileged child, so limits and kubelet's "
            "socket take whatever rights this user has; start it as root",
        )
        return None
    group = node.run_as_group or node.run_as_user
    give_folder(settings.state_dir, node.run_as_user, group)
    rules = rules_of(settings)
    link = start_keeper(rules) if rules.may_limit or rules.kubelet_socket else None
    become(node.run_as_user, group)
    if not os.access(settings.state_dir, os.R_OK | os.W_OK | os.X_OK):
        raise Forbidden(
            f"user {node.run_as_user} cannot use state_dir {settings.state_dir}: let it enter every folder above",
            reason="STATE_DIR_CLOSED",
        )
    _log.info(
        "privileges_parted",
        user=node.run_as_user,
        group=group,
        child_pid=None if link is None else link.pid,
        may_limit=rules.may_limit,
        may_ask_kubelet=bool(rules.kubelet_socket),
    )
    return link


def give_folder(folder: Path, user: int, group: int) -> None:
    """Make a folder the user's, with all that is in it, if it was root's until now; leave it as it is if it is the user's already.

    Raises:
        Forbidden: it is a third one's.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = folder.stat().st_uid
    if owner == user:
        return  # what is in it may be links by now, made by somebody without root: nothing there is given to anybody
    if owner != 0:
        raise Forbidden(
            f"state_dir {folder} belongs to user {owner}, neither to root nor to run_as_user {user}: give it to one of them",
            reason="STATE_DIR_OF_ANOTHER",
        )
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(Path(place) / name, user, group, follow_symlinks=False)
    os.chown(folder, user, group)  # last: until then a start that was cut off begins again
