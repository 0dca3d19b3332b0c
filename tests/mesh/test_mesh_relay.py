"""Two members that no hole punching joins, and the relays between them.

      transit
────┬─────┬─────┬─────┬────
 r-public1  r-public2  r-apd1  r-apd2     both NATs choose another port for every target
    │         │        │       │
 public1   public2    apd1   apd2
 relay    (relay)      a       b
"""

import contextlib
import hashlib
import json
import os
import shutil

import pytest

from lablib import mesh as lab_mesh
from lablib import topology, wait_until
from mesh.meshes import PATIENCE, member, mesh_of
from meshd.errors import BadPacket
from meshd.keys import NodeKey, WireGuardKey
from meshd.path.wire import ProbeSealer
from meshd.trust.secret import derive
from meshd.underlay import MAGIC, DatagramType

pytestmark = pytest.mark.netns

SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
RELAY_PORTS = range(51900, 53948)
PLAINTEXT = bytes.fromhex("70 6c 61 69 6e 74 65 78 74 21 3f 2e")  # "plaintext!?."
INITIATION, RESPONSE, _COOKIE, DATA = range(1, 5)
FORWARDING = "cat /proc/sys/net/ipv[46]/conf/*/forwarding /proc/sys/net/ipv6/conf/*/accept_ra"


class Relayed:
    """A mesh of a, b and one or two relays."""

    def __init__(self, mesh):
        self.mesh = mesh
        nodes = mesh.lab.nodes
        self.a, self.b = nodes["apd1"], nodes["apd2"]
        self.relay, self.other = nodes["public1"], nodes["public2"]

    def start(self, node, *arguments, port=51820):
        """Start a member; the relay is everybody's seed."""
        file = node.file(lab_mesh.SECRET_FILE)
        file.touch(mode=0o600)
        file.write_text(self.mesh.secret)
        seed = [] if node is self.relay else ["--seed", f"{self.relay.ipv4.ip}:{port}"]
        node.start_daemon(
            *("--secret-file", lab_mesh.SECRET_FILE, "--name", node.name), *seed, *arguments
        )
        lab_mesh.wait_answering(node)

    def form(self, *relays, port=51820):
        """Start everything, and wait until a and b answer each other by a relay."""
        for relay in relays or (self.relay,):
            self.start(relay, "--relay", port=port)
        for node in (self.a, self.b):
            self.start(node, "--no-relay", port=port)
        self.mesh.wait_whole(self.a, self.b, *(relays or (self.relay,)))
        self.wait_relayed()

    def wait_relayed(self, *relays):
        """Wait until both are reached by one of these relays, or by any, and answer."""
        names = {relay.name for relay in relays}

        def is_so():
            for node, other in ((self.a, self.b), (self.b, self.a)):
                seen = member(node, other.name)
                assert seen["path"] == "relayed", f"{node.name}: {seen}"
                assert not names or seen["relay"] in names, f"{node.name}: {seen}"
            return True

        wait_until(is_so, "both are reached by a relay", timeout=PATIENCE)
        self.mesh.ping_all(self.a, self.b)

    def used(self):
        """The relay by which a reaches b."""
        return self.mesh.lab.nodes[member(self.a, self.b.name)["relay"]]

    def relays_them(self, relay):
        """Whether a relay forwards between both; it may do so for others too, as their spare."""
        pairs = relay.control("/v1/relays")["self"]["pairs"]
        names = {self.a.name, self.b.name}
        return any(set(pair["members"]) == names and pair["bound"] for pair in pairs)

    def wait_in_kernel(self, relay):
        """Wait until a relay's kernel forwards both ways."""

        def is_so():
            health = [each["message"] for each in relay.status()["health"]]
            assert self.relays_them(relay)
            assert elements(relay) >= 2, f"{elements(relay)} elements, {health}"
            return True

        wait_until(is_so, f"{relay.name} relays in the kernel", timeout=PATIENCE)

    def flow(self):
        """Pings from a to b, 100 a second."""
        return self.a.ping_flow(self.mesh.address(self.b), rate=100.0)


@contextlib.contextmanager
def relayed():
    with mesh_of(topology("nats:apd")) as mesh:
        yield Relayed(mesh)


def tables(node):
    """A relay's tables in nft, as JSON objects by kind."""
    listing = json.loads(node.run(["nft", "--json", "list", "ruleset"]).stdout)["nftables"]
    found = {}
    for entry in listing:
        for kind, each in entry.items():
            if "meshd_relay" in f"{each.get('table', '')} {each.get('name', '')}":
                found.setdefault(kind, []).append(each)
    return found


def elements(node):
    """How many flows a relay has in the kernel."""
    return sum(
        len(each.get("elem", ()))
        for each in tables(node).get("map", ())
        if each["name"] == "arriving"
    )


def forwarded(node):
    """How many datagrams a relay's kernel has forwarded."""
    return sum(
        expression["counter"]["packets"]
        for rule in tables(node).get("rule", ())
        for expression in rule["expr"]
        if "counter" in expression
    )


def wait_forwarded(node, count):
    """Wait until a relay's kernel has forwarded so many more."""
    begin = forwarded(node)
    wait_until(
        lambda: forwarded(node) >= begin + count, f"{count} more are forwarded", timeout=PATIENCE
    )


def hide_nft(node):
    node.run(["mount", "--bind", "/dev/null", shutil.which("nft", path=SYSTEM_PATH)])


def sends_to(key, datagram):
    """Whether a handshake message is for the holder of a key: WireGuard paper, section 5.4.4."""
    mac1_key = hashlib.blake2s(b"mac1----" + bytes(key)).digest()
    mac1 = hashlib.blake2s(datagram[:-32], digest_size=16, key=mac1_key).digest()
    return mac1 == datagram[-32:-16]


def relay_addresses(lab):
    node = lab.relay
    return {each.ip for each in (node.ipv4, node.ipv6) if each is not None}


def test_a_relay_carries_ciphertext_that_it_cannot_open():
    with relayed() as lab:
        capture = lab.relay.capture("udp")
        lab.form()
        pattern = PLAINTEXT.hex()
        ping = ["ping", "-c", "20", "-i", "0.01", "-p", pattern, lab.mesh.address(lab.b)]
        wait_until(
            lambda: "20 received" in lab.a.run(ping).stdout, "20 of 20 pings", timeout=PATIENCE
        )
        keys = {
            node: WireGuardKey.parse(node.status()["self"]["public_key"])
            for node in (lab.a, lab.b, lab.relay)
        }
        mesh_key, bootstrap_key = derive(lab.mesh.secret.encode())
        node_key = NodeKey(lab.relay.file("/var/lib/meshd/mesh0/node.key").read_bytes()[:32])
        # Of this relay's own ports: it may be a member that another one relays for, too.
        ports = {(address, port) for address in relay_addresses(lab) for port in RELAY_PORTS}
        through = [
            packet.payload
            for packet in capture.packets()
            if ports
            & {(packet.source, packet.source_port), (packet.destination, packet.destination_port)}
            and packet.payload[:5] != MAGIC + bytes([DatagramType.RELAY_HELLO])
        ]

        handshakes = [each for each in through if each[0] in {INITIATION, RESPONSE}]
        probes = [each for each in through if each.startswith(MAGIC)]
        data = [each for each in through if each[0] == DATA]
        assert len(handshakes) + len(probes) + len(data) == len(through)
        assert handshakes
        assert probes
        assert len(data) >= 2 * 2 * 20  # there and back, into the relay and out of it
        assert not any(PLAINTEXT in each for each in through)
        assert all(each[1:4] == bytes(3) for each in (*handshakes, *data))
        for each in handshakes:
            assert sends_to(keys[lab.a], each) or sends_to(keys[lab.b], each)
            assert not sends_to(keys[lab.relay], each)
        # What is not for a or b by its handshake is for nobody.
        indices = {each[4:8] for each in handshakes}
        assert {each[4:8] for each in data} <= indices
        sealer = ProbeSealer(node_key, mesh_key.id, bootstrap_key)
        for each in probes:
            with pytest.raises(BadPacket, match=r"does not open|from ourselves"):
                sealer.open_probe_untrusted(sealer.open_sender_untrusted(each))


def test_the_kernel_goes_on_relaying_without_the_daemon_and_with_it_again():
    with relayed() as lab:
        lab.form()
        lab.wait_in_kernel(lab.relay)
        with_flow = lab.flow()
        wait_forwarded(lab.relay, 50)

        lab.relay.kill_daemon()
        wait_forwarded(lab.relay, 50)
        lab.relay.start_daemon()
        lab_mesh.wait_answering(lab.relay)
        lab.wait_relayed(lab.relay)
        wait_forwarded(lab.relay, 50)
        report = with_flow.stop()

        assert not report.lost, report
        assert elements(lab.relay) == 2


@pytest.mark.slow
def test_without_nft_the_daemon_itself_relays():
    with relayed() as lab:
        hide_nft(lab.relay)
        lab.form(port=51821)

        report = lab.a.ping_flow(lab.mesh.address(lab.b), rate=100.0, duration=3.0).result()

        assert not report.lost, report


@pytest.mark.slow
def test_a_host_that_lets_nothing_be_forwarded_relays_all_the_same():
    with relayed() as lab:
        lab.relay.run(["nft", "add table inet host"])
        lab.relay.run(["nft", "add chain inet host pass { type filter hook forward priority 0; }"])
        lab.relay.run(["nft", "add rule inet host pass drop"])
        lab.form()
        flow = lab.flow()
        wait_until(
            lambda: "relay-firewall" in [each["code"] for each in lab.relay.status()["health"]],
            "the relay has noticed",
            timeout=PATIENCE,
        )
        lab.wait_relayed(lab.relay)
        flow.stop()

        assert elements(lab.relay) == 0
        report = lab.a.ping_flow(lab.mesh.address(lab.b), rate=100.0, duration=3.0).result()
        assert not report.lost, report


@pytest.mark.slow
def test_leaving_puts_everything_back():
    with relayed() as lab:
        before = lab.relay.run(["sh", "-c", FORWARDING]).stdout
        lab.form()
        lab.wait_in_kernel(lab.relay)
        assert lab.relay.run(["sh", "-c", FORWARDING]).stdout != before

        lab.relay.meshctl("leave")

        assert lab.relay.process.wait(PATIENCE) == 0
        assert lab.relay.run(["sh", "-c", FORWARDING]).stdout == before
        assert tables(lab.relay) == {}


@pytest.mark.slow
def test_a_relay_that_goes_without_notice_is_replaced(measured):
    with relayed() as lab:
        lab.form(lab.relay, lab.other)
        flow = lab.flow()
        gone = lab.used()
        left = lab.other if gone is lab.relay else lab.relay
        lab.wait_in_kernel(gone)

        gone.link_down()
        lab.wait_relayed(left)
        report = flow.stop()

        measured("s of silence", report.longest_gap)
        assert report.received > 0


@pytest.mark.slow
def test_a_relay_that_is_drained_loses_nothing():
    with relayed() as lab:
        lab.form(lab.relay, lab.other)
        flow = lab.flow()
        drained = lab.used()
        left = lab.other if drained is lab.relay else lab.relay
        lab.wait_in_kernel(drained)

        drained.meshctl("drain")
        lab.wait_relayed(left)
        wait_until(lambda: not lab.relays_them(drained), "it has let go of both", timeout=PATIENCE)
        report = flow.stop()

        assert not report.lost, report
