"""Path probes: the datagram with which two members prove an address to each other.

A member says hello to its port of a relay in the same form, with a datagram type of its own, so
that it is kept there while probes between members are forwarded.

      0       5            29                                                      end
     +-------+------------+-------------------------------------------------------+
     |mesh| t| nonce (24) | secretbox under the mesh's probe key                   |
     +-------+------------+  +---------------+----------------------------------+ |
                          |  | sender id (32)| secretbox under the pair's key   | |
                          |  +---------------+  length, map, zeros              | |
                          +-------------------------------------------------------+

    key  field        in          meaning
     1   type         all         1 ping, 2 pong (t is 3); 3 hello, 4 hello pong (t is 10)
     2   transaction  both        8 bytes; the pong repeats the ping's
     3   installed    both        "you are a peer in my kernel"; absent = false
     4   held         both        sequence of the receiver's record as the sender holds it;
                                  absent = 0, holds none
     5   sequence     both        sequence of the sender's own record; absent = 0
     6,7 observed     pongs       address and port the ping or hello came from
     8   record       ping        the sender's record, verbatim
     9   challenge    hello pong  8 bytes, good for the address and port it was sent to
                      hello       the newest one from that port of the relay; absent at first
    10   bound        hello pong  "that address is behind your port"; absent = false
    64   preshared    both        tags of the pre-shared keys it holds for this pair (8 bytes
                                  each, see `meshd.preshared.keys`); absent = takes no part
    72   yours        ping        the receiver's own record, verbatim, where it has shown that it
                                  does not know its newest one; never beside 8
    80   uses         ping, pong  "this is the path that my packets to you take"; absent = false

Rule 1: the outer box keeps strangers out and senders private; the inner box proves the sender.
        Its key depends on the direction, so a ping cannot be turned round and sent back.

Rule 2: a probe without a record is padded to one size, so no pong is longer than its ping.

Rule 3: after a change of the bootstrap key the one before opens the outer box as well, for those
        who have not heard of it.  Who has made a probe is proven by the inner box in either case.

Rule 4: opening proves who made a probe, not when.  What follows from a ping must be harmless when
        it is an old one, and a pong counts only for a transaction that is open.  For the same
        reason a hello binds an address only if it brings the challenge that was sent there.

Rule 5: the type of the datagram is outside of the seal, so the type inside has to agree with it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import nacl.bindings
import nacl.exceptions

from meshd.codec import Fields, pack, pack_address
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, BootstrapKey, MeshId, NodeId, NodeKey, fingerprint
from meshd.trust.record import RECORD_BYTES_MAX
from meshd.underlay import (
    DATAGRAM_BYTES_MAX,
    HEADER_BYTES,
    DatagramType,
    datagram_type_untrusted,
    header,
    pad,
    unpad_untrusted,
)
from meshd.wg.types import Endpoint

NONCE_BYTES = 24
TAG_BYTES = 16
TRANSACTION_BYTES = 8
CHALLENGE_BYTES = 8
BODY_BYTES_MIN = 96  # above the longest body without a record
PRESHARED_BYTES_MAX = 16
PAIR_KEYS_MAX = 4096

_TYPE, _TRANSACTION, _INSTALLED, _HELD, _SEQUENCE, _ADDRESS, _PORT, _RECORD = range(1, 9)
_CHALLENGE, _BOUND = 9, 10
_PRESHARED = 64
_YOURS = 72
_USES = 80


class ProbeType(enum.IntEnum):
    """The values are part of the wire format.  Only append."""

    PING = 1
    PONG = 2
    HELLO = 3
    HELLO_PONG = 4

    @property
    def datagram_type(self) -> DatagramType:
        """The type of the datagram that carries it."""
        return _DATAGRAM_TYPES[self]


_DATAGRAM_TYPES = {
    ProbeType.PING: DatagramType.PATH_PROBE,
    ProbeType.PONG: DatagramType.PATH_PROBE,
    ProbeType.HELLO: DatagramType.RELAY_HELLO,
    ProbeType.HELLO_PONG: DatagramType.RELAY_HELLO,
}
_PONGS = frozenset({ProbeType.PONG, ProbeType.HELLO_PONG})


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe, opened."""

    type: ProbeType
    transaction: bytes
    installed: bool = False
    held: int = 0
    sequence: int = 0
    observed: Endpoint | None = None  # in every pong, in no ping
    record: bytes | None = None  # in pings only
    yours: bytes | None = None  # in pings only, and without `record`: both fit no datagram
    preshared: bytes | None = None
    challenge: bytes | None = None  # in hellos and their pongs only
    bound: bool = False  # in hello pongs only
    uses: bool = False


@dataclass(frozen=True, slots=True)
class SealedProbe:
    """A probe whose outer box has been opened: made by a holder of the mesh's bootstrap key."""

    sender: NodeId  # claimed: proven by opening the inner box
    nonce: bytes
    box: bytes
    datagram_type: DatagramType = DatagramType.PATH_PROBE
    older: bool = False  # by the key before: it may not know the present one


class ProbeSealer:
    """Seals and opens the probes of one node in one mesh."""

    def __init__(
        self,
        key: NodeKey,
        mesh: MeshId,
        bootstrap_key: BootstrapKey,
        older: BootstrapKey | None = None,
    ) -> None:
        self._key = key
        self._mesh = mesh
        self.rekey(bootstrap_key, older)
        self._pair_keys: dict[NodeId, tuple[bytes, bytes]] = {}  # (to, from), oldest use first

    def rekey(self, bootstrap_key: BootstrapKey, older: BootstrapKey | None) -> None:
        """Take the present bootstrap key, and the one before (rule 3)."""
        self._probe_key = self._probe_key_of(bootstrap_key)
        self._older_probe_key = None if older is None else self._probe_key_of(older)

    @property
    def has_older(self) -> bool:
        """Whether there are members that may only know the key before."""
        return self._older_probe_key is not None

    def can_seal(self, target: NodeId) -> bool:
        """Whether there is a key for this pair: an id may sign and yet be no key to agree on."""
        try:
            self._keys_untrusted(target)
        except BadPacket:
            return False
        return True

    def seal(self, probe: Probe, target: NodeId, nonce: bytes, *, older: bool = False) -> bytes:
        """Return the datagram for a probe.  The nonce is used once; 24 random bytes are.

        The target is one that `can_seal` has accepted.  `older`: for who may only know the key
        before, if there is one.
        """
        probe_key = self._older_probe_key if older else None
        to_target, _ = self._keys_untrusted(target)
        body = pad(_encode(probe), BODY_BYTES_MIN)
        inner = bytes(self._key.id) + _seal(body, nonce, to_target)
        datagram = (
            header(probe.type.datagram_type)
            + nonce
            + _seal(inner, nonce, probe_key or self._probe_key)
        )
        assert len(datagram) <= DATAGRAM_BYTES_MAX, "records are bounded so that this fits"
        return datagram

    def open_sender_untrusted(self, datagram: bytes) -> SealedProbe:
        """Open the outer box: one symmetric decryption, two where there is an older key."""
        kind = datagram_type_untrusted(datagram)
        if kind not in _DATAGRAM_TYPES.values():
            raise BadPacket("not a probe")
        nonce = datagram[HEADER_BYTES : HEADER_BYTES + NONCE_BYTES]
        box = datagram[HEADER_BYTES + NONCE_BYTES :]
        older = False
        try:
            inner = _open_untrusted(box, nonce, self._probe_key)
        except BadPacket:
            if self._older_probe_key is None:
                raise
            inner = _open_untrusted(box, nonce, self._older_probe_key)
            older = True
        if len(inner) < KEY_BYTES:
            raise BadPacket("probe too short")
        return SealedProbe(NodeId(inner[:KEY_BYTES]), nonce, inner[KEY_BYTES:], kind, older)

    def open_probe_untrusted(self, sealed: SealedProbe) -> Probe:
        """Open the inner box: a key agreement for a sender not met lately, and a decryption."""
        if sealed.sender == self._key.id:
            raise BadPacket("probe from ourselves")
        _, from_sender = self._keys_untrusted(sealed.sender)
        body = unpad_untrusted(_open_untrusted(sealed.box, sealed.nonce, from_sender))
        probe = _decode_untrusted(body)
        if probe.type.datagram_type is not sealed.datagram_type:
            raise BadPacket("probe in a datagram of another type")
        return probe

    def _keys_untrusted(self, other: NodeId) -> tuple[bytes, bytes]:
        keys = self._pair_keys.pop(other, None)
        if keys is None:
            shared = self._key.agree(other)
            keys = (
                self._pair_key(shared, self._key.id, other),
                self._pair_key(shared, other, self._key.id),
            )
        self._pair_keys[other] = keys
        if len(self._pair_keys) > PAIR_KEYS_MAX:
            del self._pair_keys[next(iter(self._pair_keys))]
        return keys

    def _probe_key_of(self, bootstrap_key: BootstrapKey) -> bytes:
        return fingerprint(self._mesh, bootstrap_key, size=KEY_BYTES, person=b"meshd.probe")

    def _pair_key(self, shared: bytes, sender: NodeId, receiver: NodeId) -> bytes:
        return fingerprint(
            self._mesh, shared, sender, receiver, size=KEY_BYTES, person=b"meshd.pair"
        )


def _seal(plaintext: bytes, nonce: bytes, key: bytes) -> bytes:
    ciphertext: bytes = nacl.bindings.crypto_secretbox(plaintext, nonce, key)
    return ciphertext


def _open_untrusted(ciphertext: bytes, nonce: bytes, key: bytes) -> bytes:
    if len(nonce) != NONCE_BYTES or len(ciphertext) < TAG_BYTES:
        raise BadPacket("probe too short")
    try:
        plaintext: bytes = nacl.bindings.crypto_secretbox_open(ciphertext, nonce, key)
    except nacl.exceptions.CryptoError as exc:
        raise BadPacket("probe does not open") from exc
    return plaintext


def _encode(probe: Probe) -> bytes:
    assert len(probe.transaction) == TRANSACTION_BYTES
    assert (probe.observed is not None) == (probe.type in _PONGS)
    fields: dict[int, object] = {_TYPE: int(probe.type), _TRANSACTION: probe.transaction}
    if probe.installed:
        fields[_INSTALLED] = True
    if probe.held:
        fields[_HELD] = probe.held
    if probe.sequence:
        fields[_SEQUENCE] = probe.sequence
    if probe.observed is not None:
        fields[_ADDRESS] = pack_address(probe.observed.address)
        fields[_PORT] = probe.observed.port
    if probe.record is not None:
        assert probe.type is ProbeType.PING
        fields[_RECORD] = probe.record
    if probe.yours is not None:
        assert probe.type is ProbeType.PING
        assert probe.record is None
        fields[_YOURS] = probe.yours
    if probe.challenge is not None:
        fields[_CHALLENGE] = probe.challenge
    if probe.bound:
        fields[_BOUND] = True
    if probe.preshared is not None:
        fields[_PRESHARED] = probe.preshared
    if probe.uses:
        fields[_USES] = True
    return pack(fields)


def _decode_untrusted(body: bytes) -> Probe:
    fields = Fields.unpack_untrusted(body, what="probe")
    try:
        type_ = ProbeType(fields.uint(_TYPE))
    except ValueError as exc:
        raise BadPacket("unknown probe type") from exc
    observed = None
    record = yours = challenge = None
    if type_ in _PONGS:
        address = fields.address(_ADDRESS)
        if address is None:
            raise BadPacket("pong without an observed address")
        observed = Endpoint(address, fields.uint(_PORT, maximum=0xFFFF))
    elif type_ is ProbeType.PING and fields.has(_RECORD):
        record = fields.blob(_RECORD, maximum=RECORD_BYTES_MAX)
    elif type_ is ProbeType.PING and fields.has(_YOURS):
        yours = fields.blob(_YOURS, maximum=RECORD_BYTES_MAX)
    of_hello = type_.datagram_type is DatagramType.RELAY_HELLO
    if of_hello and fields.has(_CHALLENGE):
        challenge = fields.blob(_CHALLENGE, size=CHALLENGE_BYTES)
    probe = Probe(
        type=type_,
        transaction=fields.blob(_TRANSACTION, size=TRANSACTION_BYTES),
        installed=fields.flag(_INSTALLED),
        held=fields.uint(_HELD, default=0),
        sequence=fields.uint(_SEQUENCE, default=0),
        observed=observed,
        record=record,
        yours=yours,
        preshared=(
            fields.blob(_PRESHARED, maximum=PRESHARED_BYTES_MAX) if fields.has(_PRESHARED) else None
        ),
        challenge=challenge,
        bound=type_ is ProbeType.HELLO_PONG and fields.flag(_BOUND),
        uses=fields.flag(_USES),
    )
    fields.done()
    return probe
