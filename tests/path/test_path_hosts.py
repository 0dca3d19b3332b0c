"""An address that is a member's own is not another's: what comes from there was relayed."""

from meshd.errors import BadPacket
from meshd.path.candidates import PathClass
from meshd.path.hosts import Hosts
from meshd.path.wire import Probe, ProbeType
from path.scripted import B_PUBLIC, HERE, agent_and_peer, answer
from path.world import A, B, C, Scripted, endpoint, host

RELAY = C.id
AT_RELAY = endpoint("203.0.113.9", 51905)
OTHER_NODES = endpoint("198.51.100.7", 51905)


def relay_of_b():
    """An agent that knows a relay, and b behind a NAT."""
    agent, b = agent_and_peer(host("192.168.7.2"))
    agent.update_peer(RELAY, (host("203.0.113.9"),), sequence=1, now=0.0)
    agent.datagrams_to_send()
    return agent, b


def bind(agent, port, *, now):
    """Have the relay answer the hello at a port of it."""
    relay = Scripted(C)
    (hello,) = [out for out in agent.datagrams_to_send() if out.target == port]
    pong = Probe(
        ProbeType.HELLO_PONG,
        relay.open(hello.datagram).transaction,
        observed=endpoint("203.0.113.1"),
        challenge=b"8 bytes!",
        bound=True,
    )
    agent.receive_datagram(relay.seal(pong, A), port, HERE, now)


def opened(out):
    """Open what is for b; None where it is for the relay."""
    try:
        return Scripted(B).open(out.datagram)
    except BadPacket:
        return None


def prove(agent, b, address, *, now):
    """Answer what the agent asks at an address, if it does."""
    for out in agent.datagrams_to_send():
        if out.target == address:
            answer(agent, b, b.open(out.datagram), address, now, uses=False)


def heard_from(agent, b, source, now=1.0):
    """Have b prove an address that its record does not list."""
    agent.receive_datagram(b.ping(A), source, HERE, now)
    prove(agent, b, source, now=now + 0.01)
    (pair,) = [pair for pair in agent.view(b.key.id).pairs if pair.control == source]
    return pair


def test_what_comes_from_another_members_own_address_is_relayed_by_it():
    agent, b = relay_of_b()

    pair = heard_from(agent, b, AT_RELAY)

    assert pair.path_class is PathClass.RELAYED
    assert agent.endpoint(b.key.id) == AT_RELAY  # it works, and there is nothing else
    assert agent.view(b.key.id).relay == RELAY


def test_what_comes_from_nobodys_own_address_is_the_peers_nat():
    agent, b = relay_of_b()

    assert heard_from(agent, b, OTHER_NODES).path_class is PathClass.REFLEXIVE
    assert agent.view(b.key.id).relay is None


def test_a_relays_other_port_does_not_take_the_place_of_one_that_was_granted():
    agent, b = relay_of_b()
    granted = endpoint("203.0.113.9", 51983)
    agent.relay_offered(b.key.id, RELAY, granted, now=0.5)
    bind(agent, granted, now=0.5)
    prove(agent, b, granted, now=0.6)
    assert agent.endpoint(b.key.id) == granted

    # Everything is answered for ten seconds: what were a better class would have stood its trial.
    heard_from(agent, b, AT_RELAY, now=1.5)
    for tenth in range(15, 115):
        now = tenth / 10
        agent.handle_timer(now)
        for out in agent.datagrams_to_send():
            if out.target in {granted, AT_RELAY}:
                probe = opened(out)
                if probe is not None and probe.type is ProbeType.PING:
                    answer(agent, b, probe, out.target, now, uses=out.target == granted)

    assert agent.endpoint(b.key.id) == granted


def test_a_member_keeps_its_own_addresses_for_itself():
    hosts = Hosts()
    hosts.listed(RELAY, [host("203.0.113.9")])
    hosts.listed(B.id, [host("203.0.113.9"), B_PUBLIC])

    assert hosts.relay(AT_RELAY, B.id) == RELAY  # who came first
    assert hosts.relay(AT_RELAY, RELAY) is None
    hosts.forget(RELAY)
    assert hosts.relay(AT_RELAY, B.id) is None
    hosts.listed(B.id, [])
    assert hosts.relay(endpoint("203.0.113.2"), RELAY) is None


def test_an_address_that_is_listed_twice_is_one():
    hosts = Hosts()
    hosts.listed(RELAY, [host("203.0.113.9"), host("203.0.113.9", 4000)])
    hosts.forget(RELAY)

    assert hosts.relay(AT_RELAY, B.id) is None


def test_private_addresses_are_nobodys_own():
    hosts = Hosts()
    hosts.listed(RELAY, [host("192.168.1.2")])

    assert hosts.relay(endpoint("192.168.1.2"), B.id) is None
