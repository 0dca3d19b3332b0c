"""What befalls an underlay does, and nothing else."""

import os
import socket
import threading

import pytest

from lab.sockets import PATIENCE, inside, receive
from lablib import Lab, faults, internet, topology

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces takes root"),
]

SILENCE = 1.0


def test_a_cut_loses_what_is_between_two_and_nothing_else_until_it_is_mended():
    with Lab(internet(3)) as lab:
        a, b, c = lab.nodes.values()
        faults.cut(lab, a, b.ipv4.ip)
        assert set(a.ping(str(b.ipv4.ip), str(c.ipv4.ip), str(b.ipv6.ip), timeout=SILENCE)) == {
            *(str(c.ipv4.ip), str(b.ipv6.ip))
        }
        assert b.ping(str(a.ipv4.ip), timeout=SILENCE) == {}

        faults.mend(lab, a)
        assert a.ping(str(b.ipv4.ip), timeout=PATIENCE)


def test_a_cut_of_a_part_loses_about_that_part():
    with Lab(internet(2)) as lab:
        a, b = lab.nodes.values()
        faults.cut(lab, a, b.ipv4.ip, percent=20)
        report = a.ping_flow(str(b.ipv4.ip), rate=500, duration=2.0).result()

    # Of a thousand requests, a fifth, and of the answers to the others a fifth: 360 or so.
    assert 250 < len(report.lost) < 470


@pytest.fixture
def talk():
    """Send from a socket inside to one outside; return the port it is seen from."""

    def opened(node, port):
        with inside(node.namespace):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((str(node.ipv4.ip), port))
        return made

    return opened


@pytest.mark.parametrize(("kind", "stays"), [("ei-apd", True), ("ei-apd-r", False)])
def test_a_nat_that_was_restarted_makes_new_mappings_and_knows_no_old_ones(kind, stays, talk):
    with Lab(topology(f"nats:{kind}")) as lab:
        node = lab[f"{kind}1"]
        with talk(node, 40_000) as behind, talk(lab["public1"], 9_000) as outside:
            behind.sendto(b"1", outside.getsockname())
            _, before = receive(outside)

            faults.rebind(lab, node)
            outside.sendto(b"lost", before)
            behind.sendto(b"2", outside.getsockname())
            _, after = receive(outside)

            assert (after == before) == stays
            outside.sendto(b"found", after)
            assert receive(behind)[0] == b"found"


def test_a_nat_that_is_restarted_under_traffic_makes_new_mappings_all_the_same(talk):
    with Lab(topology("nats:ei-apd-r")) as lab:
        node, stop = lab["ei-apd-r1"], threading.Event()
        with talk(node, 40_000) as behind, talk(lab["public1"], 9_000) as outside:

            def chatter():
                while not stop.wait(0.001):
                    behind.sendto(b"again", outside.getsockname())

            talker = threading.Thread(target=chatter)
            talker.start()
            try:
                _, before = receive(outside)
                faults.rebind(lab, node)
                seen = [receive(outside)[1] for _ in range(2_000)]
            finally:
                stop.set()
                talker.join()

    assert seen[-1] != before


def test_where_a_member_is_seen_is_its_own_address_or_its_outermost_nats():
    with Lab(topology("nats:cgn")) as lab:
        carrier = next(router for router in lab.topology.routers if router.name == "c-cgn")
        assert faults.outside_address(lab, lab["public1"]) == lab["public1"].ipv4.ip
        assert faults.outside_address(lab, lab["cgn1"]) == carrier.uplink.ipv4.ip


def test_a_second_cable_leads_to_another_wire():
    with Lab(internet(2)) as lab:
        a, b = lab.nodes.values()
        address = a.plug_in("eth1", b.member.port.segment, host=5)

        assert b.ping(str(address.ip), timeout=PATIENCE)
