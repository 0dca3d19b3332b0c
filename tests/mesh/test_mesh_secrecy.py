"""What an outsider sees and hears: WireGuard, sealed datagrams, and silence."""

import random
import socket
from ipaddress import ip_address

import pytest

from lablib import lan
from mesh.meshes import mesh_of
from meshd.keys import NodeId, WireGuardKey

pytestmark = pytest.mark.netns

WIREGUARD_TYPES = {1, 2, 3, 4}
PROBES = 2000


def identities(mesh):
    """What must not be seen of the members, long enough not to occur by chance."""
    for node in mesh.nodes:
        own = node.status()["self"]
        yield bytes(NodeId.parse(own["id"]))
        yield bytes(WireGuardKey.parse(own["public_key"]))
        yield ip_address(own["ipv6"]).packed


def test_the_underlay_carries_only_wireguard_and_sealed_datagrams():
    with mesh_of(lan(3)) as mesh:
        leaver = mesh.nodes[-1]
        captures = [node.capture("udp or tcp") for node in mesh.nodes]
        mesh.form()
        mesh.ping_all()
        told = [b"meshd", mesh.secret.encode(), *identities(mesh)]
        leaver.meshctl("leave")
        leaver.process.wait(30)
        packets = [packet for capture in captures for packet in capture.packets()]

        assert len(packets) > 100
        for packet in packets:
            assert packet.protocol == socket.IPPROTO_UDP, packet
            assert (packet.source_port, packet.destination_port) == (51820, 51820), packet
            if packet.payload[:4] == b"mesh":
                assert packet.payload[4] in {1, 2, 3}
                # Sealed bytes are as good as random.
                assert len(set(packet.payload[5:])) > 30
            else:
                assert packet.payload[0] in WIREGUARD_TYPES, packet
                assert packet.payload[1:4] == bytes(3), packet
            assert not any(secret in packet.payload for secret in told)


@pytest.mark.slow
def test_a_scan_with_random_payloads_gets_no_answer():
    with mesh_of(lan(3)) as mesh:
        a, b, outsider = mesh.nodes
        mesh.form([a, b])
        rng = random.Random(5)
        capture = outsider.capture(f"src host {a.ipv4.ip}")

        def scan():
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            for number in range(PROBES):
                head = (b"", b"mesh", b"mesh\x01", b"mesh\x02", b"mesh\x03", b"\x01\0\0\0")
                size = rng.choice((0, 5, 30, 148, 300, 1195))
                payload = head[number % len(head)] + rng.randbytes(size)
                for port in (51820, 51821, 7946, 9580):
                    sender.sendto(payload, (str(a.ipv4.ip), port))
            sender.close()
            return PROBES

        assert outsider.namespace.call(scan, "a scan") == PROBES
        heard = {packet.protocol for packet in capture.packets()}

        # Of the ports where nobody listens the kernel tells, which shows that we would have heard.
        assert heard == {socket.IPPROTO_ICMP}
        mesh.wait_whole(a, b)
        mesh.ping_all(a, b)
