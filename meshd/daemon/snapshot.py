"""What the daemon shows of itself, read off the engine between two of its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.control.snapshot import (
    HealthFinding,
    MemberSnapshot,
    MeshSnapshot,
    PeerSnapshot,
    SelfSnapshot,
)
from meshd.daemon import invites, rekeying
from meshd.daemon.carrier import carrier_findings
from meshd.daemon.clones import clone_findings
from meshd.daemon.credential import credential_findings, own_credential
from meshd.daemon.preshared import preshared_findings, psk_age
from meshd.daemon.roots import root_findings
from meshd.daemon.wording import listed
from meshd.gossip.claim import MemberState
from meshd.plan.claims import usable
from meshd.trust.grammar import ANY_TAG

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meshd.audit import Head
    from meshd.control.snapshot import PathKind, State, Transport
    from meshd.engine.engine import Engine
    from meshd.keys import NodeId
    from meshd.trust.standing import Standing
    from meshd.wg.types import PeerStatus

_STATES: dict[MemberState, State] = {
    MemberState.ALIVE: "alive",
    MemberState.SUSPECT: "suspect",
    MemberState.DEAD: "dead",
    MemberState.LEFT: "left",
}
_REACHED = {MemberState.ALIVE, MemberState.SUSPECT}


def mesh_snapshot(
    engine: Engine,
    *,
    interface: str,
    backend: str,
    ready: bool,
    uptime: float,
    startup: Mapping[str, float],
    bad_packets: Mapping[str, int],
    findings: tuple[HealthFinding, ...],
    audit_head: Head | None,
    holds_mesh_key: bool,
    wall: float,
) -> MeshSnapshot:
    """Return the mesh as this node sees it; `findings` are those of the daemon itself."""
    identity = engine.identity
    me = SelfSnapshot(
        id=identity.node,
        name=engine.ledger.names().get(identity.node, identity.name),
        ipv4=engine.presence.ipv4,
        ipv6=identity.ipv6,
        public_key=identity.wireguard_key.public,
        interface=interface,
        listen_port=engine.config.listen_port,
        backend=backend,
        relay=engine.presence.relays,
        ready=ready,
        uptime=uptime,
        version=engine.config.version,
        health_score=engine.gossip.health_score,
        startup=startup,
        bad_packets=bad_packets,
        credential=own_credential(engine),
        audit_head=audit_head,
        holds_mesh_key=holds_mesh_key,
    )
    return MeshSnapshot(
        id=identity.mesh,
        name=identity.mesh.short,
        me=me,
        members=tuple(_member(engine, node, standing, wall) for node, standing in engine.others()),
        health=(*findings, *engine_findings(engine)),
        open=identity.open_mesh,
    )


def peer_snapshots(engine: Engine, wall: float) -> tuple[PeerSnapshot, ...]:
    """Return the WireGuard device's peers, those of members in the order of their names."""
    owners = {standing.record.wireguard_key: node for node, standing in engine.others()}
    snapshots = [
        PeerSnapshot(
            public_key=key,
            member=engine.name_of(owners[key]) if key in owners else None,
            endpoint=peer.endpoint,
            allowed_ips=tuple(sorted(peer.allowed_ips, key=lambda ip: (ip.version, str(ip)))),
            persistent_keepalive=peer.persistent_keepalive,
            handshake_age=_handshake_age(peer, wall),
            rx_bytes=peer.rx_bytes,
            tx_bytes=peer.tx_bytes,
            relay=relay_name(engine, owners[key]) if key in owners else None,
        )
        for key, peer in engine.device.peers.items()
    ]
    return tuple(sorted(snapshots, key=lambda peer: (peer.member is None, peer.member or "")))


def _member(engine: Engine, node: NodeId, standing: Standing, wall: float) -> MemberSnapshot:
    view = engine.gossip.member(node)
    # A clone that has fallen silent hears nobody.
    state = MemberState.DEAD if view is None or engine.clones.silent else view.state
    peer = engine.device.peers.get(standing.record.wireguard_key)
    return MemberSnapshot(
        id=node,
        name=engine.name_of(node),
        state=_STATES[state],
        incarnation=0 if view is None else max(0, view.incarnation),
        ipv4=engine.presence.addresses.get(node),
        ipv6=engine.ipv6_of(node),
        public_key=standing.record.wireguard_key,
        endpoint=None if peer is None else peer.endpoint,
        path=_path_kind(engine, node, peer) if state in _REACHED else None,
        relay=relay_name(engine, node),
        transport=_transport(engine, peer) if state in _REACHED else None,
        rtt=None if view is None else view.rtt,
        handshake_age=None if peer is None else _handshake_age(peer, wall),
        rx_bytes=0 if peer is None else peer.rx_bytes,
        tx_bytes=0 if peer is None else peer.tx_bytes,
        tags=tuple(tag for tag in standing.credential.tags if tag != ANY_TAG),
        routes=standing.routes(wall),
        version=standing.record.version,
        expires_at=standing.credential.expires_at or None,
        post_quantum=peer is not None and engine.preshared.post_quantum(node, peer),
        psk_age=psk_age(engine, node, wall),
    )


def _path_kind(engine: Engine, node: NodeId, peer: PeerStatus | None) -> PathKind | None:
    if peer is None or peer.endpoint is None:
        return None
    return "direct" if relay_name(engine, node) is None else "relayed"


def relay_name(engine: Engine, node: NodeId) -> str | None:
    """Return the name of the member that relays to a member, if one does."""
    view = engine.path.view(node)
    return None if view is None or view.relay is None else engine.name_of(view.relay)


def _transport(engine: Engine, peer: PeerStatus | None) -> Transport | None:
    if peer is None or peer.endpoint is None:
        return None
    return "tcp" if engine.carriage.is_over_tcp(peer.endpoint) else "udp"


def _handshake_age(peer: PeerStatus, wall: float) -> float | None:
    if not peer.last_handshake_time:
        return None
    return max(0.0, wall - peer.last_handshake_time)


def engine_findings(engine: Engine) -> Iterator[HealthFinding]:
    """Say what is wrong with this node in the mesh, and with the mesh as far as it sees."""
    entry, identity = engine.entry, engine.identity
    if engine.revoking.revocation is not None:
        yield HealthFinding("error", "revoked", engine.revoking.text)
    elif entry.refusal is not None:
        yield HealthFinding("error", "refused", entry.refusal)
    elif entry.silent:
        yield HealthFinding(
            "warning",
            "no-answer",
            f"no answer from {', '.join(entry.seeds)}: it is down, or UDP is blocked on the way, "
            "or the secret or token is another mesh's; trying on",
        )
    yield from credential_findings(engine)
    yield from root_findings(engine)
    score, score_max = engine.gossip.health_score, engine.config.gossip.health_score_max
    if 2 * score > score_max:
        yield HealthFinding(
            "warning",
            "local-health",
            f"this node misses answers that others get (health score {score} of {score_max}): it "
            "is short of CPU or badly connected; it probes less often and waits longer meanwhile",
        )
    if entry.clock_is_off:
        assert entry.clock_skew is not None
        yield HealthFinding(
            "warning",
            "clock",
            f"this clock is {abs(entry.clock_skew):.0f} s "
            f"{'behind' if entry.clock_skew > 0 else 'ahead of'} the seed's; set it right: tokens "
            "and credentials expire by it",
        )
    if identity.chain and engine.presence.ipv4 is None:
        yield HealthFinding(
            "warning",
            "no-ipv4",
            f"no IPv4 address is free for this node in {identity.ipv4_prefix}, or its pinned one "
            "is another's; IPv6 works",
        )
    shown = engine.ledger.names().get(identity.node)
    if shown is not None and shown != identity.name:
        yield HealthFinding(
            "warning",
            "name-taken",
            f"the name {identity.name} belongs to a member admitted earlier; this node is shown "
            f"as {shown}: for a name of its own, leave, move the state directory away and join "
            "with another --name",
        )
    yield from invites.findings(engine)
    yield from clone_findings(engine)
    yield from carrier_findings(engine)
    yield from rekeying.findings(engine)
    yield from _findings_of_members(engine)


def _findings_of_members(engine: Engine) -> Iterator[HealthFinding]:
    prefix = engine.identity.ipv4_prefix
    strangers = [
        engine.name_of(node)
        for node, standing in engine.others()
        if standing.ipv4 is not None and not usable(standing.ipv4, prefix)
    ]
    if strangers:
        yield HealthFinding(
            "warning",
            "ipv4-prefix",
            f"{listed(strangers)} claim addresses outside {prefix}: all nodes need the same "
            "--ipv4-prefix",
        )
    yield from preshared_findings(engine)
    conflicts = [engine.name_of(node) for node in engine.key_conflicts]
    if conflicts:
        yield HealthFinding(
            "error",
            "key-conflict",
            f"{listed(conflicts)} have no tunnel: their WireGuard key is also another member's",
        )
