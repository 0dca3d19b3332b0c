"""Which router is asked what, and what becomes of its answers; time is an argument."""

import struct
from ipaddress import IPv4Address, IPv4Network
from random import Random

import pytest

from meshd.portmap import natpmp, pcp, ssdp, upnp
from meshd.portmap.actions import Ask, Call, Search
from meshd.portmap.gateway import Gateway
from meshd.portmap.mapper import (
    ANNOUNCED_INTERVAL,
    DOUBLE_NAT_PAUSE,
    LIFETIME,
    PAUSE_MAX,
    PORTS_TRIED_MAX,
    TRIES_MAX,
    Mapper,
    Method,
    State,
)
from meshd.wg.types import Endpoint

PORT = 51820
NONCE = bytes(range(12))
GATEWAY = Gateway(IPv4Address("192.168.1.1"), IPv4Address("192.168.1.2"), "eth0")
OTHER = Gateway(IPv4Address("192.168.9.1"), IPv4Address("192.168.9.2"), "wlan0")
OUTSIDE = IPv4Address("203.0.113.9")
MESH = IPv4Network("203.0.113.128/25")
LOCATION = "http://192.168.1.1:1900/d.xml"


class World:
    """A mapper, what it has asked for, and a clock."""

    def __init__(self, gateway=GATEWAY):
        self.now = 1000.0
        self.mapper = Mapper(PORT, NONCE, excluded=(MESH,), rng=Random(4))
        self.mapper.gateway_changed(gateway, self.now)

    @property
    def view(self):
        return self.mapper.view()

    def asked(self, kind=Ask):
        actions = self.mapper.actions()
        assert all(isinstance(action, kind) for action in actions), actions
        return actions

    def wait(self):
        """Go on to the next deadline."""
        self.now = self.mapper.get_timer().at
        self.mapper.handle_timer(self.now)

    def pcp(
        self, *, epoch=0, nonce=NONCE, internal=PORT, external=PORT, address=OUTSIDE, life=LIFETIME
    ):
        data = struct.pack("!BBBBII12x", 2, 129, 0, 0, life, epoch)
        body = struct.pack("!12sB3xHH16s", nonce, 17, internal, external, ipv6(address))
        self.mapper.receive_datagram(data + body, self.now)

    def pcp_refuses(self, result, life=30):
        data = struct.pack("!BBBBII12x", 2, 129, 0, result, life, 0)
        self.mapper.receive_datagram(data, self.now)

    def older_version(self):
        self.mapper.receive_datagram(struct.pack("!BBHI", 0, 129, 1, 5), self.now)

    def address(self, address=OUTSIDE, epoch=5):
        head = struct.pack("!BBHI", 0, 128, 0, epoch)
        self.mapper.receive_datagram(head + address.packed, self.now)

    def natpmp(self, external=PORT, life=LIFETIME, internal=PORT, epoch=5):
        data = struct.pack("!BBHIHHI", 0, 129, 0, epoch, internal, external, life)
        self.mapper.receive_datagram(data, self.now)

    def announce(self, epoch):
        data = struct.pack("!BBBBII12x", 2, 128, 0, 0, 0, epoch)
        self.mapper.receive_announcement(data, self.now)

    def found(self, location=LOCATION):
        answer = f"HTTP/1.1 200 OK\r\nLOCATION: {location}\r\n\r\n".encode()
        self.mapper.receive_search_answer(answer, self.now)

    def upnp(self, line):
        self.mapper.upnp_answered(line, self.now)

    def to_upnp(self):
        """Have the router speak neither PCP nor NAT-PMP."""
        self.mapper.actions()
        self.mapper.unreachable(self.now)


def ipv6(address):
    return b"\0" * 10 + b"\xff\xff" + address.packed


def upnp_mapped(port=PORT, life=LIFETIME, address=OUTSIDE):
    text = f'{{"address": "{address}", "external_port": {port}, "lifetime": {life}}}'
    return text.encode()


def test_a_router_with_pcp_maps_the_port():
    world = World()
    assert world.asked() == [Ask(pcp.map_request(GATEWAY.source, NONCE, PORT, PORT, LIFETIME))]

    world.pcp(external=4000)

    assert world.mapper.endpoint == Endpoint(OUTSIDE, 4000)
    assert (world.view.state, world.view.method) == (State.MAPPED, Method.PCP)


def test_a_router_with_the_older_version_is_asked_in_that():
    world = World()
    world.asked()

    world.older_version()
    assert world.asked() == [Ask(natpmp.address_request())]
    world.address()
    assert world.asked() == [Ask(natpmp.map_request(PORT, PORT, LIFETIME))]
    world.natpmp(external=4000)

    assert world.mapper.endpoint == Endpoint(OUTSIDE, 4000)
    assert world.view.method is Method.NAT_PMP


def test_a_router_with_upnp_is_asked_by_the_process():
    world = World()
    world.to_upnp()
    assert {action.target for action in world.asked(Search)} == {
        str(GATEWAY.address), ssdp.MULTICAST
    }  # fmt: skip

    world.found()
    (call,) = world.asked(Call)
    assert call.line == upnp.question(
        LOCATION, GATEWAY, PORT, external_port=PORT, lifetime=LIFETIME
    )
    world.upnp(upnp_mapped(life=0))

    assert world.mapper.endpoint == Endpoint(OUTSIDE, PORT)
    assert world.view.method is Method.UPNP
    assert world.view.expires_at is None


def test_a_silent_router_is_asked_a_few_times_and_again_after_longer_and_longer_pauses():
    world = World()
    pauses = []
    for _ in range(12):
        began_at = world.now
        asks = searches = 0
        while world.view.state is State.ASKING:
            actions = world.mapper.actions()
            asks += sum(isinstance(action, Ask) for action in actions)
            searches += sum(isinstance(action, Search) for action in actions)
            world.wait()
        assert (asks, searches) == (TRIES_MAX, 2 * TRIES_MAX)
        assert world.view.state is State.SILENT
        silent_at = world.now
        world.wait()
        assert world.view.state is State.ASKING
        assert silent_at - began_at < 10
        pauses.append(world.now - silent_at)

    assert pauses[0] < 80
    assert max(pauses) <= 1.25 * PAUSE_MAX
    assert pauses[-1] > 0.7 * PAUSE_MAX


@pytest.mark.parametrize(
    "gateway",
    [None, GATEWAY._replace(source=IPv4Address("198.51.100.7"))],
    ids=["no router", "a public address"],
)
def test_where_no_port_is_needed_none_is_asked_for(gateway):
    world = World(OTHER)
    world.mapper.actions()

    world.mapper.gateway_changed(gateway, world.now)

    assert world.view.state is State.UNNEEDED
    assert world.asked() == []
    assert world.mapper.get_timer().at == float("inf")


def test_a_mapping_is_renewed_at_half_of_its_life():
    world = World()
    world.pcp(life=600)
    world.mapper.actions()
    granted_at = world.now

    world.wait()

    assert 300 <= world.now - granted_at <= 375
    assert len(world.asked()) == 1
    world.pcp(life=600)
    assert world.view.expires_at == world.now + 600


def test_a_mapping_that_is_not_renewed_counts_until_its_life_is_over():
    world = World()
    world.pcp(life=600)
    expires_at = world.view.expires_at
    while world.mapper.endpoint is not None:
        assert world.now < expires_at + 8  # the last question may be open
        world.wait()

    assert world.now >= expires_at
    assert world.view.state is State.ASKING


def test_a_router_that_grants_seconds_is_not_asked_all_the_time():
    world = World()
    world.pcp(life=1)
    world.mapper.actions()
    asked = 0
    until = world.now + 600
    while world.mapper.get_timer().at < until:
        world.wait()
        asked += len(world.mapper.actions())
        world.pcp(life=1)

    assert asked < 700


@pytest.mark.parametrize(
    "address",
    [
        "192.168.0.7",
        "10.1.2.3",
        "100.100.0.1",
        "203.0.113.200",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
    ],
)
def test_an_outside_that_others_cannot_reach_is_no_candidate_and_is_given_back(address):
    world = World()
    world.mapper.actions()

    world.pcp(address=IPv4Address(address))

    assert world.mapper.endpoint is None
    assert world.view.state is State.DOUBLE_NAT
    assert world.asked() == [Ask(pcp.map_request(GATEWAY.source, NONCE, PORT, PORT, 0))]
    world.pcp(address=IPv4Address(address), life=0)
    given_back_at = world.now
    assert world.asked() == []
    world.wait()
    assert world.now - given_back_at == DOUBLE_NAT_PAUSE
    assert world.view.state is State.ASKING


def test_an_answer_to_another_question_changes_nothing():
    world = World()
    world.mapper.actions()

    world.pcp(nonce=bytes(12))
    world.pcp(internal=22)
    world.pcp(life=0)
    world.natpmp()
    world.address()
    world.found()
    world.upnp(upnp_mapped())

    assert world.view.state is State.ASKING
    assert world.asked() == []
    world.pcp()
    assert world.view.state is State.MAPPED
    world.pcp(external=4000)
    assert world.mapper.endpoint == Endpoint(OUTSIDE, PORT)


def test_a_port_that_another_machine_has_is_given_up_for_another():
    world = World()
    world.to_upnp()
    world.found()
    ports = []
    for _ in range(PORTS_TRIED_MAX):
        (call,) = (action for action in world.mapper.actions() if isinstance(action, Call))
        ports.append(call.line)
        world.upnp(b'{"error": "ConflictInMappingEntry"}')

    assert len(set(ports)) == PORTS_TRIED_MAX
    assert world.view.state is State.REFUSED
    assert "conflict" in world.view.reason


def test_a_router_that_refuses_is_said_to_and_asked_again_later():
    world = World()
    world.pcp_refuses(pcp.Result.NOT_AUTHORIZED, life=2000)
    for _ in range(TRIES_MAX):
        world.wait()

    assert world.view.state is State.REFUSED
    assert world.view.reason == "PCP: not authorized"
    refused_at = world.now
    world.wait()
    assert world.now - refused_at >= 0.75 * 2000


def test_without_the_library_a_router_counts_as_silent():
    world = World()
    world.to_upnp()
    world.found()

    world.upnp(b'{"error": "Missing"}')

    assert world.view.state is State.SILENT


def test_a_process_that_says_rubbish_or_nothing_is_as_good_as_silent():
    for line in (b"", b"\xff" * 100):
        world = World()
        world.to_upnp()
        world.found()
        world.upnp(line)
        assert world.view.state is State.SILENT


def test_another_router_is_asked_at_once_and_the_mapping_of_the_former_forgotten():
    world = World()
    world.pcp()
    world.mapper.actions()

    world.mapper.gateway_changed(OTHER, world.now)

    assert world.mapper.endpoint is None
    assert world.asked() == [Ask(pcp.map_request(OTHER.source, NONCE, PORT, PORT, LIFETIME))]


def test_a_router_that_has_lost_its_mappings_is_asked_again_at_once():
    world = World()
    world.pcp(epoch=5000)
    world.mapper.actions()
    world.now += 100
    world.announce(5100)
    assert world.asked() == []

    world.announce(2)

    assert len(world.asked()) == 1
    world.pcp(epoch=2)
    world.now += ANNOUNCED_INTERVAL / 2
    world.announce(0)
    assert world.asked() == []  # not that often


def test_what_announces_before_the_router_has_answered_is_no_restart():
    world = World()
    world.mapper.actions()

    world.announce(7)

    assert world.asked() == []


def test_after_a_sleep_the_mapping_is_asked_for_again():
    world = World()
    world.pcp()
    world.mapper.actions()

    world.mapper.resumed(world.now)

    assert len(world.asked()) == 1
    assert world.mapper.endpoint == Endpoint(OUTSIDE, PORT)


def test_who_leaves_gives_its_port_back_and_asks_for_none_any_more():
    world = World()
    world.pcp()
    world.mapper.actions()

    world.mapper.release(world.now)

    assert world.asked() == [Ask(pcp.map_request(GATEWAY.source, NONCE, PORT, PORT, 0))]
    assert not world.mapper.done
    world.pcp(life=0)
    assert world.mapper.done
    world.mapper.gateway_changed(OTHER, world.now)
    world.mapper.resumed(world.now)
    world.announce(0)
    assert world.asked() == []
    assert world.mapper.get_timer().at == float("inf")


def test_what_is_granted_to_one_that_has_left_is_given_back():
    world = World()
    world.mapper.actions()
    world.mapper.release(world.now)
    assert not world.mapper.done

    world.pcp()

    assert world.mapper.endpoint is None
    assert world.asked() == [Ask(pcp.map_request(GATEWAY.source, NONCE, PORT, PORT, 0))]


def test_a_router_that_does_not_listen_keeps_nobody_from_leaving():
    for begin in (lambda _: None, lambda world: world.pcp()):
        world = World()
        begin(world)
        world.mapper.release(world.now)
        for _ in range(TRIES_MAX):
            world.wait()
        assert world.mapper.done


def test_who_leaves_before_the_router_was_asked_for_anything_is_done_at_once():
    world = World()
    world.to_upnp()
    world.mapper.actions()

    world.mapper.release(world.now)

    assert world.mapper.done
    assert world.mapper.get_timer().at == float("inf")


def test_a_mapping_by_upnp_is_ended_by_upnp():
    world = World()
    world.to_upnp()
    world.found()
    world.upnp(upnp_mapped(port=4000))
    world.mapper.actions()

    world.mapper.release(world.now)

    (call,) = world.asked(Call)
    assert call.line == upnp.question(LOCATION, GATEWAY, PORT, external_port=4000, lifetime=0)
    world.upnp(upnp_mapped(port=4000, life=0, address=IPv4Address(0)))
    assert world.mapper.done
