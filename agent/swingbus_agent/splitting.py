"""Part the agent from root at its start: what needs root goes to a child, and the agent becomes the user that its file names.

Decides whether there is anything to part, and in which order: rules from the file, the child, the state folder, then root is gone. Must
run before there are threads or an event loop, for rights belong to threads. Invariant: after it returned a link, this process has
no right left; where it cannot part although the file wants it, the agent does not start.
"""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from swingbus.bundle import BUNDLE_FILE, Bundle, format_bundle, install_bundle
from swingbus.faults import AlreadyExists, Forbidden
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
    # From below: without DAC_OVERRIDE root can't look into a private folder that it has given away.
    for place, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            os.chown(Path(place) / name, user, group, follow_symlinks=False)
    os.chown(folder, user, group)  # last: until then a start that was cut off begins again


def install_for_user(bundle: Bundle, settings: AgentSettings, *, replace: bool) -> Path:
    """Install a bundle, as root, where the user that the agent becomes can read it; return its path.

    The folder may be that user's own, who may have put anything into it: it is opened once, never through a link, and what is given
    to the user is the file that was just written, told by its content and by having no second name.

    Raises:
        Forbidden: the folder is a link, or the file is not what was written.
    """
    node, folder = settings.node, settings.controller.bundle
    group = node.run_as_group or node.run_as_user
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.resolve() != folder.parent.resolve() / folder.name:
        raise Forbidden(
            f"{folder} is a link: a bundle goes into a folder of its own; remove it", reason="BUNDLE_FOLDER_IS_LINK"
        )
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        install_bundle(bundle, Path(f"/proc/self/fd/{place}"), replace=replace)
        file = os.open(BUNDLE_FILE, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=place)
        with os.fdopen(file, encoding="utf-8") as written:
            if os.fstat(file).st_nlink != 1 or written.read() != format_bundle(bundle):
                raise Forbidden(
                    f"somebody changed {folder / BUNDLE_FILE} meanwhile; join again", reason="BUNDLE_CHANGED"
                )
            os.fchown(file, node.run_as_user, group)
        if os.fstat(place).st_uid == 0:
            os.fchown(place, node.run_as_user, group)
    except AlreadyExists as error:
        raise AlreadyExists(str(error).replace(f"/proc/self/fd/{place}", str(folder)), reason=error.reason) from error
    except OSError as error:
        raise Forbidden(
            f"the bundle cannot be installed in {folder}: {error}", reason="BUNDLE_NOT_INSTALLED"
        ) from error
    finally:
        os.close(place)
    return folder / BUNDLE_FILE
