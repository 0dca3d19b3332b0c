"""The JSON documents, built from snapshots.  Pure: equal snapshots give equal documents.

Every document names its schema.  Within a version fields may be added; none is changed or dropped.
Members appear in the order of their names, so that two looks can be compared line by line.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from meshd.control.snapshot import STATES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshd.control.routes import Document, Json
    from meshd.control.snapshot import (
        CredentialSnapshot,
        EventRecord,
        HealthFinding,
        MemberSnapshot,
        MeshSnapshot,
        PeerSnapshot,
        PingAnswer,
        SelfSnapshot,
    )


_INSTANT_MAX = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


def status_document(mesh: MeshSnapshot) -> Document:
    """Return `meshd.status/1`."""
    counts: Document = {state: mesh.count(state) for state in STATES}
    return {
        "schema": "meshd.status/1",
        "mesh": {
            "id": str(mesh.id),
            "name": mesh.name,
            "members": counts,
            "open": mesh.open,
        },
        "self": _self(mesh.me),
        "members": [_member(member) for member in sorted(mesh.members, key=_by_name)],
        "health": [_finding(finding) for finding in mesh.health],
    }


def peers_document(peers: Iterable[PeerSnapshot]) -> Document:
    """Return `meshd.peers/1`."""
    in_order = sorted(peers, key=lambda peer: (peer.member or "", peer.public_key))
    return {"schema": "meshd.peers/1", "peers": [_peer(peer) for peer in in_order]}


def event_document(record: EventRecord) -> Document:
    """Return `meshd.event/1`."""
    return {
        "schema": "meshd.event/1",
        "at": rfc3339(record.at),
        "event": record.event,
        "member": record.member,
        "message": record.message,
        # What an event says of itself never hides what every event has.
        **{
            key: list(value) if isinstance(value, tuple) else value
            for key, value in record.details.items()
            if key not in _EVENT_FIELDS
        },
    }


_EVENT_FIELDS = frozenset({"schema", "at", "event", "member", "message"})


def events_document(records: Iterable[EventRecord]) -> Document:
    """Return `meshd.events/1`."""
    return {"schema": "meshd.events/1", "events": [event_document(record) for record in records]}


def ping_document(member: MemberSnapshot, number: int, answer: PingAnswer) -> Document:
    """Return `meshd.ping/1`: one ping."""
    return {
        "schema": "meshd.ping/1",
        "member": member.name,
        "number": number,
        "rtt_ms": milliseconds(answer.rtt),
        "path": answer.path,
        "endpoint": _text(answer.endpoint),
        "relay": answer.relay,
    }


def ping_summary_document(member: MemberSnapshot, rtts: Sequence[float | None]) -> Document:
    """Return `meshd.ping-summary/1`: the last line of a ping."""
    answered = [rtt for rtt in rtts if rtt is not None]
    return {
        "schema": "meshd.ping-summary/1",
        "member": member.name,
        "sent": len(rtts),
        "answered": len(answered),
        "rtt_min_ms": milliseconds(min(answered, default=None)),
        "rtt_mean_ms": milliseconds(sum(answered) / len(answered) if answered else None),
        "rtt_max_ms": milliseconds(max(answered, default=None)),
    }


def rfc3339(at: float) -> str:
    """Return an instant in UTC, to the millisecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def milliseconds(span: float | None) -> float | None:
    """Return a span of seconds as documents have it, in milliseconds."""
    return None if span is None else round(span * 1000, 3)


def _by_name(member: MemberSnapshot) -> tuple[str, bytes]:
    return member.name, member.id


def _self(me: SelfSnapshot) -> Document:
    return {
        "id": str(me.id),
        "name": me.name,
        "ipv4": _text(me.ipv4),
        "ipv6": str(me.ipv6),
        "public_key": str(me.public_key),
        "interface": me.interface,
        "listen_port": me.listen_port,
        "backend": me.backend,
        "relay": me.relay,
        "ready": me.ready,
        "holds_mesh_key": me.holds_mesh_key,
        "uptime_s": round(me.uptime, 3),
        "version": me.version,
        "health_score": me.health_score,
        "startup": {phase: round(seconds, 4) for phase, seconds in me.startup.items()},
        "counters": {"bad_packets": dict(me.bad_packets)},
        "credential": None if me.credential is None else _credential(me.credential),
        "audit_head": None if me.audit_head is None else str(me.audit_head),
    }


def _member(member: MemberSnapshot) -> Document:
    return {
        "id": str(member.id),
        "name": member.name,
        "state": member.state,
        "incarnation": member.incarnation,
        "ipv4": _text(member.ipv4),
        "ipv6": str(member.ipv6),
        "public_key": str(member.public_key),
        "endpoint": _text(member.endpoint),
        "path": member.path,
        "relay": member.relay,
        "transport": member.transport,
        "rtt_ms": milliseconds(member.rtt),
        "last_handshake_s": _seconds(member.handshake_age),
        "rx_bytes": member.rx_bytes,
        "tx_bytes": member.tx_bytes,
        "tags": list(member.tags),
        "routes": [str(route) for route in member.routes],
        "version": member.version,
        "expires_at": _instant(member.expires_at),
        "post_quantum": member.post_quantum,
        "psk_age_s": _seconds(member.psk_age),
    }


def _credential(credential: CredentialSnapshot) -> Document:
    return {
        "issuer": credential.issuer or None,
        "issued_at": _instant(credential.issued_at),
        "expires_at": _instant(credential.expires_at),
        "tags": list(credential.tags),
        "routes": [str(route) for route in credential.routes],
        "admit": credential.admit,
        "relay": credential.relay,
    }


def _finding(finding: HealthFinding) -> Json:
    return {"level": finding.level, "code": finding.code, "message": finding.message}


def _peer(peer: PeerSnapshot) -> Document:
    return {
        "public_key": str(peer.public_key),
        "member": peer.member,
        "endpoint": _text(peer.endpoint),
        "allowed_ips": [str(network) for network in peer.allowed_ips],
        "persistent_keepalive": peer.persistent_keepalive,
        "last_handshake_s": _seconds(peer.handshake_age),
        "rx_bytes": peer.rx_bytes,
        "tx_bytes": peer.tx_bytes,
        "relay": peer.relay,
    }


def _text(value: object | None) -> str | None:
    return None if value is None else str(value)


def _seconds(span: float | None) -> float | None:
    return None if span is None else round(span, 1)


def _instant(at: float | None) -> str | None:
    # A credential may end in any year, and a date has four digits for it.
    return None if at is None else rfc3339(min(at, _INSTANT_MAX))
