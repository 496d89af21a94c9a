"""Certificates for a whole release: what the chart's job runs before each installation and upgrade (`certificate provide`).

Decides the order: what the authority signed is in its Secret before any bundle is in another. Run twice it changes nothing; interrupted
it is run again. Refuses to replace what somebody revoked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from swingbus.bundle import Bundle, format_bundle, parse_bundle
from swingbus.faults import InvalidInput
from swingbus.rpc.roles import Role
from swingbus_controller.adapters.kubernetes.answers import KubeApi
from swingbus_controller.adapters.kubernetes.secrets import SecretFiles, check_size, read_secret, write_secret
from swingbus_controller.adapters.pki import CertificateAuthority, CertificateState
from swingbus_controller.adapters.pki_in_cluster import AGENTS_SECRET, TEST_SECRET, LentAuthority, lend_authority
from swingbus_controller.adapters.pki_needs import Action, holder_need, server_need


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a release needs.

    Args:
        endpoint: host:port that bundles carry.
        server_names: host names and addresses by which the controller is reached.
        agents: one for each node.
        viewer: the name under which the release's test looks; empty: there is none.
        renew_within: whose certificate ends sooner gets a new one.
    """

    endpoint: str
    server_names: tuple[str, ...]
    agents: tuple[str, ...] = ()
    viewer: str = ""
    days: int
    renew_within: timedelta


async def provide(api: KubeApi, namespace: str, wanted: Wanted, now: datetime) -> int:
    """Make the namespace's Secrets hold what is wanted; print what was done, return an exit code."""
    if wanted.renew_within >= timedelta(days=wanted.days):
        raise InvalidInput(
            f"certificates that last {wanted.days} days and are renewed {wanted.renew_within.days} days before their end would be renewed "
            "by every run: let them last longer, or renew later",
            reason="BAD_DAYS",
        )
    async with lend_authority(api, namespace, may_begin=True) as lent:
        authority = _open(lent, wanted, now)
        states = authority.states(now)
        held_agents = await read_secret(api, namespace, AGENTS_SECRET)
        held_test = await read_secret(api, namespace, TEST_SECRET)
        agents, test = dict[str, str](), dict[str, str]()
        for name in wanted.agents:
            key = f"{name}.bundle.toml"
            _give(authority, states, name, Role.AGENT, agents, key, held_agents, wanted, now)
        if wanted.viewer:
            _give(authority, states, wanted.viewer, Role.VIEWER, test, "bundle.toml", held_test, wanted, now)
        # Before anything is given back: what can't be kept is not issued.
        check_size(namespace, AGENTS_SECRET, agents)
        await lent.give_back()
        for name, files, seen in ((AGENTS_SECRET, agents, held_agents), (TEST_SECRET, test, held_test)):
            if files or seen.is_there:
                await write_secret(api, namespace, name, files, seen=seen)
    print(f"certificates of {len(agents)} agents are in Secrets of namespace {namespace}")
    return 0


def _open(lent: LentAuthority, wanted: Wanted, now: datetime) -> CertificateAuthority:
    if lent.is_new:
        print("made a certificate authority")
        return CertificateAuthority.create(
            lent.directory, server_names=wanted.server_names, endpoint=wanted.endpoint, now=now, days=wanted.days
        )
    authority = CertificateAuthority(lent.directory)
    if authority.endpoint != wanted.endpoint:
        authority.move(wanted.endpoint)
    need = server_need(
        authority.states(now),
        names=authority.server_names,
        wanted=wanted.server_names,
        now=now,
        renew_within=wanted.renew_within,
    )
    if need.action is Action.ISSUE and authority.is_rotating:
        print(
            f"the controller needs a new certificate ({need.because}), after certificate rotate --finish",
            file=sys.stderr,
        )
    elif need.action is Action.ISSUE:
        authority.renew_server(now=now, days=wanted.days, server_names=wanted.server_names)
        print(f"issued the controller's certificate: {need.because}")
    return authority


def _give(
    authority: CertificateAuthority,
    states: Sequence[CertificateState],
    name: str,
    role: Role,
    files: dict[str, str],
    key: str,
    held: SecretFiles,
    wanted: Wanted,
    now: datetime,
) -> None:
    """Put the bundle that a holder is to have into `files`, under `key`; nothing where it had none and may not get one."""
    text = held.files.get(key)
    need = holder_need(
        name,
        None if text is None else _parsed(text),
        states,
        ca_pem=authority.ca_pem,
        endpoint=wanted.endpoint,
        now=now,
        renew_within=wanted.renew_within,
    )
    if need.action is Action.ISSUE:
        is_known = any(state.certificate.name == name for state in states)
        bundle = authority.issue(name, role, now=now, endpoint=wanted.endpoint, days=wanted.days, renew=is_known)
        print(f"issued {role.value} {name}, until {bundle.expires:%Y-%m-%d}: {need.because}")
        text = format_bundle(bundle)
    elif need.action is Action.LEAVE_REVOKED:
        kind = "agent" if role is Role.AGENT else "operator"
        print(
            f"{name}: {need.because}; to let it in again: certificate renew --{kind} {name}, then an upgrade",
            file=sys.stderr,
        )
    if text is not None:
        files[key] = text


def _parsed(text: str) -> Bundle | None:
    try:
        return parse_bundle(text)
    except InvalidInput:
        return None  # damaged, or of another version: it gets a new one
