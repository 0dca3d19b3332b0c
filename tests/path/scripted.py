"""A path agent, and what a test does to it by hand."""

from ipaddress import ip_address

from meshd.path.config import PathConfig
from meshd.path.wire import ProbeType
from meshd.wg.types import Endpoint
from path.world import (
    A,
    B,
    Scripted,
    endpoint,
    events_of,
    host,
    new_agent,
)

HERE = ip_address("203.0.113.1")
B_LAN = host("192.168.1.2")
B_PUBLIC = host("203.0.113.2")
AT_LAN = endpoint("192.168.1.2")
AT_PUBLIC = endpoint("203.0.113.2")
ELSEWHERE = endpoint("198.51.100.66", 4444)
CONFIG = PathConfig(backoff_jitter=0.0)


def agent_and_peer(*candidates, now=0.0, key=B):
    agent = new_agent(A, config=CONFIG, local=["203.0.113.1"])
    agent.update_peer(key.id, candidates or (B_PUBLIC,), sequence=1, now=now)
    return agent, Scripted(key)


def sent(agent, peer):
    """Take what the agent sends to a peer: (target, probe)."""
    return [(out.target, peer.open(out.datagram)) for out in agent.datagrams_to_send()]


def pings(agent, peer):
    return [(to, probe) for to, probe in sent(agent, peer) if probe.type is ProbeType.PING]


def asked(agent, peer, now):
    agent.handle_timer(now)
    return pings(agent, peer)


def answer(agent, peer, ping, source, now, *, observed=None, **flags):
    observed = observed or Endpoint(HERE, 51820)
    agent.receive_datagram(peer.pong(ping, A, observed=observed, **flags), source, HERE, now)


def made_ready(agent, peer, source=AT_PUBLIC, now=0.0):
    agent.peer_installed(peer.key.id, now)
    for target, ping in [*pings(agent, peer), *asked(agent, peer, now)]:
        if target == source:
            answer(agent, peer, ping, source, now + 0.01)
            break
    assert agent.view(peer.key.id).ready
    agent.datagrams_to_send()
    return events_of(agent)


def run_timers(agent, peer, until):
    """Return the instants and targets of all pings until then, none of them answered."""
    log = []
    while (timer := agent.get_timer()) is not None and timer.at <= until:
        log += [(timer.at, target) for target, _ in asked(agent, peer, timer.at)]
    return log
