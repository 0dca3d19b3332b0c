"""A simulated WireGuard interface: the kernel's rules as far as a mesh can feel them.

Cryptography is replaced by honesty: a message names its sender's key, and nobody can forge one.
All else follows the WireGuard paper and `drivers/net/wireguard`:

Rule 1: a packet goes to the peer whose allowed-ips have its destination, and comes out only if its
        source is among the allowed-ips of the peer it came from (cryptokey routing).

Rule 2: a session takes an initiation and a response; both must have each other's key.  There is
        one handshake per peer, so that two initiations that cross destroy each other.

Rule 3: a lost initiation is repeated after REKEY_TIMEOUT; until then nothing starts another one.

Rule 4: the responder uses a session only once something has come through it.

Rule 5: each authenticated message moves the peer's endpoint to where it came from.

Rule 6: another private key ends the sending by all sessions, not the receiving, and lets the next
        initiation go out at once.

Rule 7: a response counts only if both have the same pre-shared key for each other at that moment.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from meshd.codec import host_network
from wg.fake_device import FakeDevice

REKEY_AFTER_TIME = 120.0
REJECT_AFTER_TIME = 180.0
REKEY_TIMEOUT = 5.0
REKEY_TIMEOUT_JITTER = 0.334
REKEY_ATTEMPTS_MAX = 18
KEEPALIVE_TIMEOUT = 10.0
STAGED_MAX = 128
ROUNDING = 1e-6  # seconds

INITIATION_BYTES, RESPONSE_BYTES, DATA_BYTES = 148, 92, 32


@dataclass(frozen=True)
class Packet:
    """An IP packet inside the tunnel."""

    source: object
    target: object
    port: object  # 7946 for gossip, a string for the likes of ICMP
    payload: bytes

    @property
    def size(self):
        return len(self.payload) + (48 if self.source.version == 6 else 28)


@dataclass(frozen=True)
class Message:
    """One WireGuard message on the underlay."""

    kind: str  # initiation, response or data
    sender: object  # public keys
    target: object
    index: int  # of the handshake, and the session that comes of it
    packet: Packet | None = None  # None in data: a keepalive
    preshared_key: object = None  # what a response is made with

    @property
    def size(self):
        if self.kind == "initiation":
            return INITIATION_BYTES
        if self.kind == "response":
            return RESPONSE_BYTES
        return DATA_BYTES + (0 if self.packet is None else -(-self.packet.size // 16) * 16)


@dataclass(eq=False)
class Session:
    index: int
    began_at: float
    initiator: bool
    sends: bool = True  # rule 6


@dataclass(eq=False)
class Peer:
    """What the kernel knows of a peer besides its configuration."""

    handshake: tuple | None = None  # (initiated or responded, index)
    current: Session | None = None
    previous: Session | None = None
    following: Session | None = None  # not confirmed yet (rule 4)
    staged: list = field(default_factory=list)
    initiated_at: float = -REKEY_TIMEOUT
    retrying: int | None = None  # the handshake to be repeated, until there is a session
    attempts: int = 0
    handshake_at: float = 0.0
    sent_at: float = -1.0
    received_at: float = -1.0
    awaiting_since: float | None = None  # data was sent, and nothing has come since
    owing_since: float | None = None  # data has come, and nothing was sent since
    rx_bytes: int = 0
    tx_bytes: int = 0


class WireGuard:
    """One interface.  `observe` and `apply` are those of `meshd.wg.types.Device`."""

    def __init__(self, world, *, send, deliver, rng):
        self._world = world
        self._send = send  # (message, endpoint)
        self._deliver = deliver  # (packet)
        self._rng = rng
        self._device = FakeDevice()
        self._peers = {}
        self._indices = itertools.count(1)
        self.handshakes = 0
        self.forbidden_sources = 0  # packets dropped by rule 1
        self.homeless = 0  # packets dropped because their peer has no endpoint
        self.mismatches = 0  # responses dropped by rule 7

    # The device

    def observe(self):
        status = self._device.observe()
        peers = {
            key: replace(
                peer,
                last_handshake_time=self._peers[key].handshake_at,
                rx_bytes=self._peers[key].rx_bytes,
                tx_bytes=self._peers[key].tx_bytes,
            )
            for key, peer in status.peers.items()
        }
        return replace(status, peers=peers)

    def apply(self, change):
        own, before = self._device.observe().private_key, self._device.observe().peers
        self._device.apply(change)
        self._device.history.clear()
        after = self._device.observe().peers
        self._peers = {key: self._peers.get(key) or Peer() for key in after}
        if change.private_key not in {None, own}:
            self._end_sending()
        for key, peer in after.items():
            was = before[key].persistent_keepalive if key in before else 0
            if peer.persistent_keepalive and peer.persistent_keepalive != was:
                self._keep_alive(key, self._peers[key], peer.persistent_keepalive)

    def owner(self, address):
        """Return the peer that packets to an address go to, and from it come from."""
        wanted = host_network(address)
        for key, peer in self._device.observe().peers.items():
            if wanted in peer.allowed_ips:
                return key
        return None

    def close(self):
        """Be deleted."""
        self._peers = {}

    # Packets out

    def send(self, packet):
        """Route a packet into the tunnel it belongs to, if any."""
        key = self.owner(packet.target)
        if key is None:
            return
        if self._device.observe().peers[key].endpoint is None:
            self.homeless += 1
            return
        peer = self._peers[key]
        peer.staged = [*peer.staged, packet][-STAGED_MAX:]
        self._flush(key, peer)

    def _flush(self, key, peer):
        session = peer.current
        if session is None or not session.sends or self._now - session.began_at > REJECT_AFTER_TIME:
            self._initiate(key, peer, retry=False)
            return
        staged, peer.staged = peer.staged, []
        for packet in staged:
            self._transmit(key, peer, "data", session.index, packet)
            if packet is not None and peer.awaiting_since is None:
                peer.awaiting_since = self._now
                self._after(KEEPALIVE_TIMEOUT + REKEY_TIMEOUT, key, peer, self._expect_answer)
        if session.initiator and self._now - session.began_at > REKEY_AFTER_TIME:
            self._initiate(key, peer, retry=False)

    def _initiate(self, key, peer, *, retry):
        if self._now - peer.initiated_at < REKEY_TIMEOUT or self._endpoint(key) is None:
            return
        peer.attempts = peer.attempts + 1 if retry else 0
        peer.initiated_at = self._now
        index = self._index()
        peer.handshake = ("initiated", index)
        self._transmit(key, peer, "initiation", index, None)
        peer.retrying = index
        delay = REKEY_TIMEOUT + self._rng.random() * REKEY_TIMEOUT_JITTER
        self._after(delay, key, peer, lambda *_: self._retry(key, peer, index))

    def _retry(self, key, peer, index):
        if peer.retrying != index:
            return
        if peer.attempts >= REKEY_ATTEMPTS_MAX:
            peer.staged = []
            return
        self._initiate(key, peer, retry=True)

    def _transmit(self, key, peer, kind, index, packet):
        preshared_key = self._preshared_key(key) if kind == "response" else None
        message = Message(kind, self._own_key, key, index, packet, preshared_key)
        peer.sent_at = self._now
        peer.owing_since = None
        peer.tx_bytes += message.size
        self._send(message, self._endpoint(key))

    # Messages in

    def receive(self, message, source):
        """Handle a message that came from an endpoint."""
        peer = self._peers.get(message.sender)
        if peer is None:
            return
        if message.kind == "initiation" and message.target != self._own_key:
            return
        handle = getattr(self, f"_on_{message.kind}")
        if handle(message.sender, peer, message, source):
            peer.received_at = self._now
            peer.awaiting_since = None
            peer.rx_bytes += message.size

    def _on_initiation(self, key, peer, message, source):
        self._device.roam(key, source)
        peer.handshake = ("responded", message.index)
        peer.following = Session(message.index, self._now, initiator=False)
        self._transmit(key, peer, "response", message.index, None)
        return True

    def _on_response(self, key, peer, message, source):
        if peer.handshake != ("initiated", message.index):
            return False
        if message.preshared_key != self._preshared_key(key):
            self.mismatches += 1
            return False
        self._device.roam(key, source)
        session = Session(message.index, self._now, initiator=True)
        self._established(peer, session)
        peer.handshake = None
        peer.staged = peer.staged or [None]
        self._flush(key, peer)
        return True

    def _on_data(self, key, peer, message, source):
        sessions = (peer.current, peer.previous, peer.following)
        session = next((s for s in sessions if s is not None and s.index == message.index), None)
        if session is None or self._now - session.began_at > REJECT_AFTER_TIME:
            return False
        self._device.roam(key, source)
        if session is peer.following:
            self._established(peer, session)
            peer.following = None
            self._flush(key, peer)
        if message.packet is not None:
            if peer.owing_since is None:
                peer.owing_since = self._now
                self._after(KEEPALIVE_TIMEOUT, key, peer, self._pay_owed)
            if self.owner(message.packet.source) == key:
                self._deliver(message.packet)
            else:
                self.forbidden_sources += 1
        return True

    def _end_sending(self):
        for peer in self._peers.values():
            peer.handshake = peer.retrying = None
            peer.initiated_at = -REKEY_TIMEOUT
            for session in filter(None, (peer.current, peer.following)):
                session.sends = False

    def _established(self, peer, session):
        peer.previous, peer.current = peer.current, session
        peer.handshake_at = self._world.wall
        peer.retrying = None
        self.handshakes += 1

    # Timers

    def _expect_answer(self, key, peer):
        if self._is_over(peer.awaiting_since, KEEPALIVE_TIMEOUT + REKEY_TIMEOUT):
            peer.awaiting_since = None
            self._initiate(key, peer, retry=False)

    def _pay_owed(self, key, peer):
        if self._is_over(peer.owing_since, KEEPALIVE_TIMEOUT) and peer.current is not None:
            peer.owing_since = None
            self._transmit(key, peer, "data", peer.current.index, None)

    def _is_over(self, since, span):
        """Return whether a timer that was set then is due: it may have ended, and begun again."""
        return since is not None and self._now - since > span - ROUNDING

    def _keep_alive(self, key, peer, interval):
        status = self._device.observe().peers[key]
        if status.persistent_keepalive != interval or status.endpoint is None:
            # Nobody to keep it alive with: asked again, so that an endpoint given later is used.
            if status.persistent_keepalive == interval:
                self._after(interval, key, peer, lambda *_: self._keep_alive(key, peer, interval))
            return
        idle = self._now - max(peer.sent_at, peer.received_at)
        if idle >= interval or peer.sent_at < 0:
            peer.staged = peer.staged or [None]
            self._flush(key, peer)
            idle = 0.0
        self._after(interval - idle, key, peer, lambda *_: self._keep_alive(key, peer, interval))

    def _after(self, delay, key, peer, action):
        def due():
            if self._peers.get(key) is peer:
                action(key, peer)

        self._world.at(delay, due)

    # Reading

    @property
    def _now(self):
        return self._world.now

    @property
    def _own_key(self):
        private_key = self._device.observe().private_key
        return None if private_key is None else private_key.public

    def _endpoint(self, key):
        return self._device.observe().peers[key].endpoint

    def _preshared_key(self, key):
        return self._device.observe().peers[key].preshared_key

    def _index(self):
        # Unique in the world: a session is named by it on both sides.
        return self._rng.getrandbits(48) << 16 | next(self._indices)
