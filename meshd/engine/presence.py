"""What this node says of itself, and which IPv4 address is whose.

A record is signed anew whenever something in it changes: the host's addresses, how others see
them, the credential, the IPv4 claim.  Claims are resolved from all records, so whatever is learnt
of others may change ours: `due` asks for another look.

A claim that is lost is moved without a gap, as far as that is ours to say:

    we learn of the one before us ─▶ new claim ─▶ record to all        ─▶ RETIRE_TIME ─▶ old address
                                     new address, beside the old one                     goes

The others give the old address to its new holder at once.  Meanwhile that one cannot reach us, nor
we it, by IPv4: our host takes the address for its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.addresses import overlay_prefix
from meshd.engine import events
from meshd.engine.own_record import OwnRecord, RecordContent, own_claim
from meshd.path.candidates import own_candidates
from meshd.plan.claims import Claim, resolve_claims
from meshd.trust.credential import covered
from meshd.trust.fact import FactKind
from meshd.trust.line import member_since
from meshd.trust.record import sign_record
from meshd.underlay import Timer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address

    from meshd.codec import IPAddress, IPNetwork
    from meshd.engine.engine import Engine
    from meshd.keys import NodeId
    from meshd.trust.credential import Credential
    from meshd.trust.record import Record
    from meshd.trust.standing import Standing
    from meshd.wg.types import Endpoint

RETIRE_TIME = 3.0  # by then a record is everywhere (docs/gossip.md)
RETIRED_MAX = 4  # addresses at a time


def claims_of(members: Iterable[tuple[NodeId, Standing]]) -> list[Claim]:
    """Return what members claim."""
    return [
        Claim(node, standing.ipv4, standing.pinned, standing.admitted_at)
        for node, standing in members
        if standing.ipv4 is not None
    ]


class Presence:
    """Owns our record and the table of addresses."""

    def __init__(self, engine: Engine, *, sequence: int) -> None:
        """`sequence` is the first that may be used for a record."""
        self._engine = engine
        self._own = OwnRecord(sequence=sequence)
        self._local: tuple[IPAddress, ...] = ()
        self._mapped: Endpoint | None = None  # a port of our router's that leads to ours
        self._unspread = False  # our record is signed, and nobody has heard of it
        self.due = True
        self.ipv4: IPv4Address | None = None
        self.addresses: dict[NodeId, IPv4Address] = {}  # of all members, by their claims
        self._retired: dict[IPv4Address, float] = {}  # ours until a moment ago; when they go

    @property
    def blob(self) -> bytes:
        """Our own signed record; empty before we are admitted."""
        return self._own.blob

    @property
    def record(self) -> Record | None:
        """Our own record; None before we are admitted."""
        return self._own.record

    @property
    def relays(self) -> bool:
        """Whether our record says that we relay."""
        return self._own.record is not None and self._own.record.relay

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        """The mesh's own networks: no endpoint is ever inside them."""
        identity = self._engine.identity
        return overlay_prefix(identity.mesh), identity.ipv4_prefix

    @property
    def local(self) -> tuple[IPAddress, ...]:
        """This host's own addresses on the underlay."""
        return self._local

    def take_local(self, addresses: tuple[IPAddress, ...]) -> None:
        """Take the host's underlay addresses, best first."""
        if addresses != self._local:
            self._local = addresses
            self.due = True

    def take_mapped(self, endpoint: Endpoint | None) -> None:
        """Take where our port is reached by our router's; None: nowhere."""
        if endpoint != self._mapped:
            self._mapped = endpoint
            self.due = True

    def met_elsewhere(self, standing: Standing, now: float) -> None:
        """Take a record of ours that others hold.

        It is from an earlier run; or from a later life than our disk remembers; or a clone's.
        """
        if standing.blob == self._own.blob or not self._engine.clones.met(standing.record, now):
            return
        self.due = True
        if self._own.outrun(standing.record.sequence):
            self._engine.emit(events.SequenceOutrun(standing.record.sequence))

    @property
    def retired(self) -> tuple[IPv4Address, ...]:
        """Addresses that were ours a moment ago, and stay on the interface for another one."""
        return tuple(self._retired)

    def handle_timer(self, now: float) -> None:
        """Let go of addresses that have been retired long enough."""
        for address, until in list(self._retired.items()):
            if now >= until:
                del self._retired[address]
                self._engine.replan()

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline and its reason."""
        if not self._retired:
            return None
        return Timer(min(self._retired.values()), "take an old address off the interface")

    def refresh(self, now: float, wall: float) -> bool:
        """Sign and spread a new record if there is anything new to say.  Return whether it was."""
        engine = self._engine
        if engine.clones.yielding:
            return self._say_last(now, wall)
        if not self.due:
            return False
        self.sign(now)
        if not self._unspread:
            return False
        self._unspread = False
        fact = engine.learn(FactKind.RECORD, self._own.blob, now, wall)
        assert fact is not None, "there is room for our own record"
        engine.path.record_changed(self._own.blob, self._own.sequence)
        return True

    def sign(self, now: float) -> None:
        """Sign a new record if there is anything new to say; `refresh` spreads it later."""
        self.due = False
        engine = self._engine
        credential = engine.own_credential
        self._resolve_addresses(credential, now)
        if credential is not None and self._own.update(engine.identity, self._content(credential)):
            self._unspread = True

    def _say_last(self, now: float, wall: float) -> bool:
        """Say another machine's record once more in its place, with the news that we exist too."""
        engine, identity = self._engine, self._engine.identity
        record, engine.clones.last_word = engine.clones.last_word, None
        if record is None:
            return False
        last = replace(
            record,
            sequence=record.sequence + 1,
            run=engine.clones.run,
            rival=record.run,
            cloned=True,
        )
        blob = sign_record(last, identity.node_key, identity.mesh)
        engine.learn(FactKind.RECORD, blob, now, wall)
        engine.path.record_changed(blob, last.sequence)
        return True

    def _content(self, credential: Credential) -> RecordContent:
        engine = self._engine
        config = engine.config
        candidates = own_candidates(
            hosts=self._local,
            port=config.listen_port,
            control_port=config.control_port,
            configured=config.configured,
            reflexive=engine.path.reflexive,
            excluded=self.networks,
            mapped=() if self._mapped is None else (self._mapped,),
        )
        key, next_key = engine.rotation.public_keys
        return RecordContent(
            wireguard_key=key,
            next_wireguard_key=next_key,
            candidates=candidates,
            ipv4=self.ipv4,
            routes=tuple(r for r in config.advertise if covered(r, credential.routes)),
            relay=engine.relays.offers(credential, candidates),
            version=config.version,
            run=engine.clones.run,
            rival=engine.clones.rival,
            cloned=engine.clones.proven,
            tcp=config.tcp,
            tls=config.tls,
        )

    # Addresses

    def _resolve_addresses(self, credential: Credential | None, now: float) -> None:
        """Decide all members' IPv4 addresses, and claim another one if ours is lost."""
        engine = self._engine
        prefix = engine.identity.ipv4_prefix
        claims = claims_of(engine.others())
        before = self.ipv4
        if credential is not None:
            own = own_claim(
                credential,
                claims,
                admitted_at=member_since(engine.own_chain),
                prefix=prefix,
                wanted=(before, engine.config.wanted_ipv4, self._remembered()),
            )
            self.ipv4 = None if own is None else own.address
            if own is not None:
                claims.append(own)
        known, self.addresses = self.addresses, resolve_claims(claims, prefix)
        engine.takings.resolved(known, self.addresses)
        if before != self.ipv4:
            engine.replan()
            if before is not None:
                self._retire(before, now)
                self._tell_change(before)
            if self.ipv4 is not None:
                self._retired.pop(self.ipv4, None)

    def _retire(self, address: IPv4Address, now: float) -> None:
        if address in self._engine.identity.ipv4_prefix and len(self._retired) < RETIRED_MAX:
            self._retired[address] = now + RETIRE_TIME

    def _tell_change(self, before: IPv4Address) -> None:
        engine = self._engine
        holders = [node for node, address in self.addresses.items() if address == before]
        if holders:
            why = f"belongs to {engine.name_of(holders[0])}"
        elif before not in engine.identity.ipv4_prefix:
            why = f"is not in the mesh's prefix {engine.identity.ipv4_prefix}"
        else:
            why = "is not the one our credential pins"
        engine.emit(
            events.Notice(
                "address-changed",
                f"our IPv4 address {before} {why}; ours is {self.ipv4}: what is under way by the "
                "old one ends",
                details={
                    "before": str(before),
                    "after": None if self.ipv4 is None else str(self.ipv4),
                },
            )
        )

    def _remembered(self) -> IPv4Address | None:
        """Return the address that our record from an earlier run claims."""
        standing = self._engine.ledger.standing(self._engine.identity.node)
        return None if standing is None else standing.record.ipv4
