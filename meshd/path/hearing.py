"""What others say to the path agent: probes, opened, answered, and drawn conclusions from.

The rules are the agent's (`meshd.path.agent`, rules 1 to 6).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.errors import BadPacket
from meshd.path.events import PeerCalling, PresharedHeard, RecordReceived
from meshd.path.strangers import Parked, Strangers
from meshd.path.wire import ProbeType
from meshd.underlay import ReplayGuard

if TYPE_CHECKING:
    from meshd.codec import IPAddress
    from meshd.keys import NodeId
    from meshd.path.agent import Agent
    from meshd.path.pair import Pair
    from meshd.path.peer import Peer
    from meshd.path.wire import Probe
    from meshd.wg.types import Endpoint

REPLAYS_REMEMBERED_MAX = 16_384
WELCOMES_MAX = 4  # unanswered questions beyond which a ping gets no immediate one in return


class Hearing:
    """See the module docstring."""

    def __init__(self, agent: Agent, *, now: float) -> None:
        self._agent = agent
        self._replays = ReplayGuard(REPLAYS_REMEMBERED_MAX)
        self._strangers = Strangers(now=now)

    def admitted(self, peer: Peer, now: float) -> None:
        """Answer the ping that a peer sent before it was known to be one."""
        parked = self._strangers.take(peer.node, now)
        if parked is not None:
            self._on_ping(peer, parked.ping, parked.source, parked.local, now)

    def receive_untrusted(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> bool:
        """Handle a datagram.  Return whether it was one that is new and not one too many."""
        agent = self._agent
        sealer = agent.prober.sealer
        sealed = sealer.open_sender_untrusted(datagram)
        mark = sealed.sender + sealed.nonce
        if mark in self._replays:
            agent.counts["replayed"] += 1
            return False
        peer = agent.peers.get(sealed.sender)
        if peer is None and (sealed.older or not self._strangers.admit(now)):
            agent.counts["strangers_dropped"] += 1
            return False
        probe = sealer.open_probe_untrusted(sealed)
        self._replays.add(mark)
        if not agent.fence.allows(source):
            raise BadPacket("probe from an impossible address")
        if probe.type is ProbeType.HELLO:
            raise BadPacket("hello where no relay's port is")
        if probe.type is ProbeType.HELLO_PONG:
            self._on_hello_pong(sealed.sender, probe, source, now)
        elif peer is None:
            self._on_stranger(sealed.sender, probe, source, local, now)
        else:
            peer.rekeyed = peer.rekeyed or not sealed.older
            if probe.type is ProbeType.PING:
                self._on_ping(peer, probe, source, local, now, older=sealed.older)
            else:
                self._on_pong(peer, probe, source, now)
        return True

    def _on_hello_pong(self, sender: NodeId, pong: Probe, source: Endpoint, now: float) -> None:
        if not self._agent.relaying.on_pong(sender, pong, source, now):
            self._agent.counts["pongs_unasked"] += 1

    def _on_stranger(
        self, node: NodeId, probe: Probe, source: Endpoint, local: IPAddress | None, now: float
    ) -> None:
        agent = self._agent
        if probe.record is None:
            # It takes us for somebody who knows it; its next search brings its record.
            agent.counts["strangers_dropped"] += 1
            return
        agent.counts["strangers"] += 1
        self._strangers.park(node, Parked(probe, source, local, now))
        agent.emit(RecordReceived(probe.record, node))

    def _on_ping(
        self,
        peer: Peer,
        ping: Probe,
        source: Endpoint,
        local: IPAddress | None,
        now: float,
        *,
        older: bool = False,
    ) -> None:
        agent = self._agent
        agent.counts["pings_received"] += 1
        if not peer.answers.take(now):
            agent.counts["limited"] += 1
            return
        agent.surroundings.heard(source, now)
        agent.prober.pong(peer, ping, source, local, now, older=older)
        if ping.record is not None and ping.sequence > peer.sequence:
            agent.emit(RecordReceived(ping.record, peer.node))
        if ping.yours is not None:
            agent.emit(RecordReceived(ping.yours, peer.node))
        if not peer.installed:
            agent.emit(PeerCalling(peer.node))
        pair = peer.observe(source, local)
        self._ask_back(peer, ping, pair, now)
        peer.heard_at = now
        agent.upgrading.heard_use(peer, pair, now, uses=ping.uses)

    def _ask_back(self, peer: Peer, ping: Probe, pair: Pair, now: float) -> None:
        """Let a ping be the occasion for our own questions."""
        agent, config = self._agent, self._agent.config
        if self._moved(peer, ping, pair) and now - peer.demanded_at >= config.recheck_interval:
            agent.demand_proof(peer, now, announce=False)
        unproven = pair.proven_at < peer.demanded_at
        if peer.differs(ping):
            peer.preshared_doubted = True
            agent.search(peer, now)
        if unproven or ping.installed != peer.installs_us or peer.preshared_doubted:
            # "You are in my kernel" is news both sides should have at once: the sooner of the two
            # to be ready starts a handshake, and if the other does so before it hears, they cross.
            # Only once, though: where answers take long, pings that beget pings would never end.
            welcome = ping.installed and not peer.installs_us and pair.unanswered < WELCOMES_MAX
            if welcome or now - pair.asked_at >= self._answer_spacing(pair, now):
                agent.prober.ping(peer, pair, now)
            if not peer.proven and now - peer.heard_at >= config.returned_after:
                # It is back: do not sit out a long pause.
                peer.attempt = min(peer.attempt, config.returning_attempt)
                peer.searching_since = now
                agent.search(peer, now)
        elif ping.held < agent.prober.sequence and now - pair.asked_at >= config.update_spacing:
            agent.prober.ping(peer, pair, now)

    def _moved(self, peer: Peer, ping: Probe, pair: Pair) -> bool:
        """Whether a ping says that the path in use may be none any longer.

        It does when the peer uses another, or is where its record does not list it.  Else it only
        searches, or while it is relayed looks for something better.
        """
        if not peer.proven or peer.selected is None or pair is peer.selected:
            return False
        if pair.relay is not None or pair.proven_at >= peer.demanded_at:
            return False
        return ping.uses or not (pair.listed or peer.selected.relayed)

    def _answer_spacing(self, pair: Pair, now: float) -> float:
        """Return how long to wait after a question before a ping may be the occasion for another.

        It grows while nothing is answered, and is no shorter than answers of late have taken: two
        sides that are slow because they are overloaded must not keep each other so.
        """
        config, slowest = self._agent.config, self._agent.answers.slowest(now)
        step = min(pair.unanswered, len(config.backoff)) - 1
        return max(min(config.backoff[max(step, 0)], config.recheck_interval), slowest)

    def _on_pong(self, peer: Peer, pong: Probe, source: Endpoint, now: float) -> None:
        agent = self._agent
        pair = peer.pairs.get(source)
        since = now - agent.config.transaction_lifetime
        quiet_since = -1.0 if pair is None else max(pair.heard_at, peer.traffic_at)
        if pair is None or not pair.close_transaction(pong.transaction, since=since, now=now):
            agent.counts["pongs_unasked"] += 1
            return
        agent.counts["pongs_received"] += 1
        peer.heard_at = now
        peer.holds = pong.held
        peer.installs_us = pong.installed
        peer.announced = peer.announced and pong.installed
        agent.choose(peer, now)
        agent.upgrading.proven(peer, pair, now)
        agent.upgrading.heard_use(peer, pair, now, uses=pong.uses)
        if peer.hear_preshared(pong.preshared):
            # Before `PeerReady`: the first handshake needs the right key.
            agent.emit(PresharedHeard(peer.node, pong.preshared))
        agent.announce(peer)
        assert pong.observed is not None
        if pair.relay is None:
            agent.answers.note(pair.rtt, now)
            idle = now - pair.rtt - quiet_since
            agent.surroundings.observed(peer.node, pair, pong.observed, idle, now)
            agent.surroundings.review_keepalive(peer)
        else:
            agent.relaying.heard(pair, now)
        spacing = agent.config.update_spacing
        if peer.holds < agent.prober.sequence and now - pair.shown_at >= spacing:
            agent.prober.ping(peer, pair, now)
        elif pong.sequence < peer.sequence and now - pair.returned_at >= spacing:
            agent.prober.ping(peer, pair, now, yours=peer.record or None)
        agent.relaying.review(peer, now)
        agent.search(peer, now)
