"""What the daemon says of paths, of its network and of relays: for `why`, `netcheck`, `relays`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshd.control.netcheck import (
    NatSnapshot,
    NearRelay,
    NetcheckSnapshot,
    PortMappingSnapshot,
)
from meshd.control.relaying import RelayedPair, RelayMember, RelaysSnapshot
from meshd.control.snapshot import PingAnswer
from meshd.control.why import PairSnapshot, WhySnapshot
from meshd.daemon.snapshot import relay_name
from meshd.path.candidates import PathClass, data_endpoint
from meshd.plan.plan import MTU_DEFAULT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.control.snapshot import MemberSnapshot
    from meshd.control.why import PairClass, Result
    from meshd.engine.engine import Engine
    from meshd.keys import NodeId
    from meshd.path.views import PairView, PathView
    from meshd.portmap.mapper import MapperView
    from meshd.relay.allocations import Allocation
    from meshd.trust.standing import Standing

_CLASSES: dict[PathClass, PairClass] = {
    PathClass.LAN: "lan",
    PathClass.HOST: "host",
    PathClass.MAPPED: "mapped",
    PathClass.REFLEXIVE: "reflexive",
    PathClass.RELAYED: "relayed",
    PathClass.RELAYED_TCP: "relayed-tcp",
}


def ping_answer(engine: Engine, node: NodeId, rtt: float | None) -> PingAnswer:
    """Return how a ping went, and by which path; None: nothing came back."""
    standing = engine.ledger.standing(node)
    if rtt is None or standing is None:
        return PingAnswer(rtt=None)
    peer = engine.device.peers.get(standing.record.wireguard_key)
    relay = relay_name(engine, node)
    return PingAnswer(
        rtt=rtt,
        path="direct" if relay is None else "relayed",
        endpoint=None if peer is None else peer.endpoint,
        relay=relay,
    )


def why(engine: Engine, member: MemberSnapshot, *, now: float, wall: float) -> WhySnapshot:
    """Return what is known of the way to a member."""
    view = engine.path.view(member.id)
    pairs = () if view is None else view.pairs
    return WhySnapshot(
        member=member,
        installed=view is not None and view.installed,
        installs_us=view is not None and view.installs_us,
        pairs=tuple(
            _pair(engine, view, pair, now)
            for pair in sorted(pairs, key=lambda pair: (pair.path_class, str(pair.control)))
            if view is not None
        ),
        nat=_nat(engine, 4),
        has_address=bool(engine.presence.local),
        port=engine.config.listen_port,
        relays=sum(1 for _ in _relays(engine, wall)),
        key_conflict=member.id in engine.key_conflicts,
    )


def netcheck(
    engine: Engine, *, mapper: MapperView | None, now: float, wall: float
) -> NetcheckSnapshot:
    """Return what is known of this node's network."""
    near = [
        NearRelay(engine.name_of(node), engine.path.endpoint(node), _rtt(engine, node))
        for node, _ in _relays(engine, wall)
    ]
    standing = engine.ledger.standing(engine.identity.node)
    candidates = () if standing is None else standing.record.candidates
    nats = (_nat(engine, 4), _nat(engine, 6))
    return NetcheckSnapshot(
        listen_port=engine.config.listen_port,
        control_port=engine.config.control_port,
        mtu=MTU_DEFAULT,
        nats=tuple(nat for nat in nats if nat.addresses),
        port_mapping=None if mapper is None else _port_mapping(mapper, now),
        candidates=tuple((each.kind.name.lower(), data_endpoint(each)) for each in candidates),
        relays=tuple(sorted(near, key=lambda r: (math.inf if r.rtt is None else r.rtt, r.name))),
    )


def relays(engine: Engine, *, now: float, wall: float) -> RelaysSnapshot:
    """Return who relays for whom."""
    table = engine.relays.allocations
    counts, _ = engine.relays.statistics()
    ports = engine.config.relay_ports
    return RelaysSnapshot(
        relaying=engine.presence.relays,
        why_not=_why_not(engine, wall),
        draining=counts.draining,
        ports=(ports.first, ports.last),
        pairs_max=counts.pairs_max,
        strangers=engine.relays.strangers,
        pairs=tuple(_relayed_pair(engine, each, now) for each in table),
        relays=tuple(_relay_members(engine, wall)),
    )


def _pair(engine: Engine, view: PathView, pair: PairView, now: float) -> PairSnapshot:
    return PairSnapshot(
        pair_class=_CLASSES[pair.path_class],
        address=pair.control,
        relay=None if pair.relay is None else engine.name_of(pair.relay),
        result=_result(view, pair),
        asked_age=_age(pair.asked_at, now),
        proven_age=_age(pair.proven_at, now),
        rtt=None if pair.rtt == math.inf else pair.rtt,
        unanswered=pair.unanswered,
        losses=pair.losses,
    )


def _result(view: PathView, pair: PairView) -> Result:
    proven = pair.proven_at > -math.inf
    if pair.endpoint is not None and pair.endpoint == view.endpoint and view.proven:
        return "in use"
    if proven and pair.unanswered < 2:  # the last one may be under way
        return "draining" if pair.draining else "works"
    if pair.losses:
        return "lost"
    return "no answer" if pair.asked_at > -math.inf else "not tried"


def _age(at: float, now: float) -> float | None:
    return None if at == -math.inf else max(0.0, now - at)


def _rtt(engine: Engine, node: NodeId) -> float | None:
    member = engine.gossip.member(node)
    return None if member is None else member.rtt


def _nat(engine: Engine, version: int) -> NatSnapshot:
    behaviour = engine.path.nat(version)
    return NatSnapshot(
        family=version,
        addresses=tuple(str(a) for a in engine.presence.local if a.version == version),
        mapping=behaviour.mapping.value,
        filtering=behaviour.filtering.value,
        port_preserving=behaviour.port_preserving,
        told_by=behaviour.destinations,
        reflexive=tuple(e for e in engine.path.reflexive if e.address.version == version),
    )


def _port_mapping(view: MapperView, now: float) -> PortMappingSnapshot:
    return PortMappingSnapshot(
        state=view.state.value,
        method=None if view.method is None else view.method.value,
        endpoint=view.endpoint,
        expires_in=None if view.expires_at is None else max(0.0, view.expires_at - now),
        reason=view.reason,
    )


def _relays(engine: Engine, wall: float) -> Iterator[tuple[NodeId, Standing]]:
    """Yield the members that say they relay, and may."""
    for node, standing in engine.others():
        if standing.relays(wall):
            yield node, standing


def _relay_members(engine: Engine, wall: float) -> Iterator[RelayMember]:
    in_use: dict[NodeId, list[str]] = {}
    spare: dict[NodeId, list[str]] = {}
    for node, _ in engine.others():
        view = engine.path.view(node)
        used = None if view is None else view.relay
        if used is not None:
            in_use.setdefault(used, []).append(engine.name_of(node))
        for relay in engine.relays.held(node):
            if relay != used:
                spare.setdefault(relay, []).append(engine.name_of(node))
    for node, _ in _relays(engine, wall):
        member = engine.gossip.member(node)
        yield RelayMember(
            name=engine.name_of(node),
            state="dead" if member is None else member.state.name.lower(),
            endpoint=engine.path.endpoint(node),
            rtt=None if member is None else member.rtt,
            in_use=tuple(sorted(in_use.get(node, ()))),
            spare=tuple(sorted(spare.get(node, ()))),
        )


def _relayed_pair(engine: Engine, allocation: Allocation, now: float) -> RelayedPair:
    one, other = allocation.sides
    return RelayedPair(
        members=(engine.name_of(one.member), engine.name_of(other.member)),
        ports=(one.port, other.port),
        bound=allocation.is_bound,
        expires_in=max(0.0, allocation.expires_at - now),
        datagrams=one.datagrams + other.datagrams,
        bytes=one.bytes + other.bytes,
    )


def _why_not(engine: Engine, wall: float) -> str | None:
    """Say why this node relays for nobody; None if it does."""
    credential = engine.own_credential
    if engine.presence.relays:
        return None
    if credential is None:
        return "it is no member yet"
    if not credential.relay or credential.expired(wall):
        return "its credential does not let it"
    if engine.relays.allocations.draining:
        return "it is being drained: see `meshctl undrain`"
    if engine.config.relay is False:
        return "it was started with --no-relay"
    return (
        "it has no public address of its own, or only an IPv6 one beside a private IPv4 one, where "
        "a firewall is likely; --relay says that its ports are reached all the same"
    )
