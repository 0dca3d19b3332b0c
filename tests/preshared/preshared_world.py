"""Two members, the tunnel between them, and a network that does what it likes.

    End ── Agreements      the real one
        ── disk            the keyring as it was written last, and older copies
        ── kernel          the pre-shared key, which outlives the daemon, not the power

The tunnel is what WireGuard makes of it: a session is renewed after 120 s and ends after 180 s, by
a handshake that both need the same key for, and that is tried every 5 s.  While nothing gets
through, each takes the other for lost after 2 s and probes its path: a pong says what the other
holds.
"""

import itertools
from random import Random

from meshd.errors import BadPacket
from meshd.keys import MeshKey, NodeKey
from meshd.preshared import wire
from meshd.preshared.agreements import Agreements, KemWanted, PresharedConfig, RingChanged
from meshd.preshared.keys import NO_KEY, Keyring
from preshared.preshared_kem import FakeKem

WALL = 1_700_000_000
TICK = 0.25
ONE_WAY = 0.05
REKEY_AFTER_TIME = 120.0
REJECT_AFTER_TIME = 180.0
REKEY_TIMEOUT = 5.0
LOST_AFTER = 2.0  # until gossip doubts a member that is not heard
PROBE_INTERVAL = 1.0

MESH = MeshKey(b"\x07" * 32).id
KEYS = sorted((NodeKey(bytes([number]) * 32) for number in (1, 2)), key=lambda key: key.id)
DECODERS = {
    wire.Offer: wire.decode_offer_untrusted,
    wire.Answer: wire.decode_answer_untrusted,
    wire.Confirm: wire.decode_confirm_untrusted,
}


class End:
    def __init__(self, world, key, **config):
        self.world = world
        self.key = key
        self.config = config
        self.kem = FakeKem(f"kem {key.id}")
        self.disk = [Keyring()]  # newest last
        self.kernel = NO_KEY
        self.events = []
        self.bad = []
        self.agreements = None
        self.starts = itertools.count(1)
        self.start()

    @property
    def other(self):
        return next(end for end in self.world.ends if end is not self)

    @property
    def node(self):
        return self.key.id

    def start(self, **config):
        other = next(key for key in KEYS if key is not self.key)
        self.agreements = Agreements(
            self.key,
            MESH,
            config=PresharedConfig(**{**self.config, **config}),
            memory={other.id: self.disk[-1]},
            rng=Random(f"{self.world.seed} {self.key.id} {next(self.starts)}"),
            now=self.world.now,
        )
        self.agreements.add(other.id, self.world.now)
        self.drain()

    def restart(self, what="same", **config):
        """Start again, with what was kept; `lost`: nothing; `old`: an earlier copy of it."""
        if what == "lost":
            self.disk = [Keyring()]
        elif what == "old":
            self.disk = self.disk[: max(1, len(self.disk) - 2)]
        self.start(**config)
        self.world.probe()

    def heard_alive(self):
        self.agreements.alive(self.other.node, self.world.now, self.world.wall)
        self.drain()

    def lost_sight(self):
        self.agreements.away(self.other.node)
        self.drain()

    def take_pong(self, told):
        self.agreements.heard(self.other.node, told, self.world.now, self.world.wall)
        self.drain()

    def receive(self, message):
        try:
            # Through the codec, as on the way.
            message = DECODERS[type(message)](wire.encode(message))
            self.agreements.receive_untrusted(
                message, self.other.node, self.world.now, self.world.wall
            )
        except BadPacket as exc:
            self.bad.append(exc.reason)
        self.drain()

    def tick(self):
        timer = self.agreements.get_timer()
        if timer is not None and timer.at <= self.world.now:
            self.agreements.handle_timer(self.world.now, self.world.wall)
            self.drain()

    def drain(self):
        agreements = self.agreements
        while (event := agreements.next_event()) is not None:
            self.events.append(event)
            match event:
                case RingChanged(_, ring):
                    self.disk.append(ring)
                case KemWanted():
                    agreements.take_kem(self.kem, self.world.wall)
        if len(self.world.ends) == 2:
            self.kernel = agreements.preshared_key(self.other.node)
            for message, _ in agreements.datagrams_to_send():
                self.world.send(self, message)

    def count(self, kind):
        return sum(isinstance(event, kind) for event in self.events)


class World:
    """See the module docstring.  `fate` says of a message after what delays it arrives, if ever."""

    def __init__(self, *, seed=1, fate=lambda: (ONE_WAY,), **config):
        self.seed = seed
        self.fate = fate
        self.now = 0.0
        self.ends = []
        for key in KEYS:
            self.ends.append(End(self, key, **config))
        self.flying = []  # (arrival, order, receiver, message)
        self._order = itertools.count()
        self.session_at = None
        self.tried_at = -REKEY_TIMEOUT
        self.carried_at = 0.0
        self.probed_at = -PROBE_INTERVAL
        self.dead_since = None
        self.dead_longest = 0.0
        self.handshakes = []  # (instant, key)

    @property
    def wall(self):
        return WALL + self.now

    @property
    def lower(self):
        return self.ends[0]

    @property
    def higher(self):
        return self.ends[1]

    @property
    def open(self):
        return self.session_at is not None and self.now - self.session_at < REJECT_AFTER_TIME

    @property
    def agreed(self):
        """Whether both use one key."""
        keys = {end.agreements.preshared_key(end.other.node) for end in self.ends}
        return len(keys) == 1 and keys != {NO_KEY}

    def send(self, sender, message):
        if self.open:
            for delay in self.fate():
                arrival = self.now + delay
                self.flying.append((arrival, next(self._order), sender.other, message))

    def probe(self):
        """Have each ask the other by a path probe, and hear its pong."""
        for end in self.ends:
            end.take_pong(end.other.agreements.told(end.node))

    def cut(self):
        """Lose the session on both ends, as by a power cut."""
        self.session_at = None
        self.tried_at = -REKEY_TIMEOUT

    def run(self, seconds, *, until=lambda: False):
        """Let time pass.  Return whether the condition came true."""
        end = self.now + seconds
        while self.now < end and not until():
            self.now += TICK
            self._deliver()
            self._handshake()
            self._gossip()
            for each in self.ends:
                each.tick()
        return until()

    def _deliver(self):
        due = sorted(entry for entry in self.flying if entry[0] <= self.now)
        self.flying = [entry for entry in self.flying if entry[0] > self.now]
        for _, _, receiver, message in due:
            receiver.receive(message)

    def _handshake(self):
        due = not self.open or self.now - self.session_at >= REKEY_AFTER_TIME
        if due and self.now - self.tried_at >= REKEY_TIMEOUT:
            self.tried_at = self.now
            keys = {end.kernel for end in self.ends}
            if len(keys) == 1:
                self.session_at = self.now
                self.handshakes.append((self.now, keys.pop()))

    def _gossip(self):
        if self.open:
            self.carried_at = self.now
            self.dead_since = None
            for end in self.ends:
                end.heard_alive()
            return
        if self.dead_since is None:
            self.dead_since = self.now
        self.dead_longest = max(self.dead_longest, self.now - self.dead_since)
        if self.now - self.carried_at >= LOST_AFTER:
            for end in self.ends:
                end.lost_sight()
            if self.now - self.probed_at >= PROBE_INTERVAL:
                self.probed_at = self.now
                self.probe()
