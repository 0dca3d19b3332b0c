"""Random and recorded datagrams: no byte in answer, nothing changed, all counted.

a ◀──── tunnel ────▶ b
▲                    what they say to each other is recorded on a's cable
└── c, who has no key, sends a anything, and then what was recorded
"""

import os
import random
import socket
import time

import pytest

from badinput.machines import NEEDS_ROOT
from lablib import wait_until
from lablib.capture import read_packets
from meshd.underlay import MAGIC, DatagramType

pytestmark = NEEDS_ROOT

PORT = 51820
SILENCE = 0.5  # seconds in which an answer would have come
# By which a mesh comes about where nobody is in trouble.
USUAL = {DatagramType.BOOTSTRAP_REQUEST, DatagramType.BOOTSTRAP_ANSWER, DatagramType.PATH_PROBE}


@pytest.fixture(scope="module")
def machines(bad_input_lab):
    """The machines, which keep their mesh from test to test."""
    yield bad_input_lab
    for name in "abc":
        bad_input_lab[name].reset()


@pytest.fixture(scope="module")
def recorded(machines):
    """A mesh of a and b, and the datagrams by which it came about."""
    a, b = machines["a"], machines["b"]
    for each in (a, b):
        each.write_secret()
    with a.node.capture("udp") as capture:
        a.start("--secret-file", "/etc/meshd/secret")
        b.start("--secret-file", "/etc/meshd/secret", "--seed", "10.77.0.1")
        a.wait_members(2)
        b.wait_members(2)
        # The kernel hands over what it has captured about once a second.
        wait_until(lambda: kinds(capture) >= USUAL, "all are captured", timeout=10)
        return capture.packets()


def kinds(capture):
    """The types of meshd's own datagrams captured so far."""
    payloads = (packet.payload for packet in read_packets(capture.path))
    return {payload[len(MAGIC)] for payload in payloads if payload.startswith(MAGIC)}


def send(machine, datagrams, *, port=PORT):
    """Send datagrams to a from a machine; return what came back: lengths, or errors of ICMP's."""

    def inside():
        heard = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
            endpoint.connect(("10.77.0.1", port))
            endpoint.settimeout(0.01)
            for number, datagram in enumerate(datagrams):
                try:
                    endpoint.send(datagram)
                except OSError as error:
                    heard.append(str(error))
                if number % 16 == 0:
                    time.sleep(0.002)  # or their number would overflow the receiver's buffer
            deadline = time.monotonic() + SILENCE
            while time.monotonic() < deadline:
                try:
                    heard.append(len(endpoint.recv(65536)))
                except TimeoutError:
                    pass
                except OSError as error:
                    heard.append(str(error))
        return heard

    return machine.node.namespace.call(inside, "send datagrams")


def junk(rng):
    """Return datagrams of many lengths: noise, and noise behind meshd's and WireGuard's headers."""
    lengths = (0, 1, 4, 5, 6, 31, 32, 100, 148, 1199, 1200, 1201, 1400)
    heads = [b"", MAGIC]
    heads += [MAGIC + bytes([kind]) for kind in (0, *DatagramType, 255)]
    heads += [bytes([kind, 0, 0, 0]) for kind in (1, 2, 3, 4)]
    return [
        (head + rng.randbytes(length))[: max(length, len(head))]
        for head in heads
        for length in lengths
    ]


def dropped(machine):
    return sum(machine.bad_packets().values())


def test_noise_is_dropped_and_counted_and_never_answered(machines, recorded):
    a, c = machines["a"], machines["c"]
    seed = random.SystemRandom().getrandbits(32)
    noise = junk(random.Random(seed))
    ours = [datagram for datagram in noise if datagram.startswith(MAGIC)]
    before, members = dropped(a), a.node.status()["members"]

    assert send(c, noise) == [], f"seed {seed}"

    wait_until(lambda: dropped(a) >= before + len(ours), "all are counted", timeout=10)
    assert "datagram too long" in a.bad_packets()
    assert "unknown datagram type" in a.bad_packets()
    assert [m["name"] for m in a.node.status()["members"]] == [m["name"] for m in members]
    assert a.findings() == {}


def test_what_was_recorded_changes_nothing_when_it_is_sent_again(machines, recorded):
    a, b, c = (machines[name] for name in "abc")
    to_a = [p.payload for p in recorded if str(p.destination) in {"10.77.0.1", "2001:db8:77::1"}]
    from_a = [p.payload for p in recorded if p.payload not in to_a]
    requests = [each for each in to_a if each.startswith(MAGIC + b"\x01")]
    probes = [each for each in to_a if each.startswith(MAGIC + b"\x03")]
    answers = [each for each in from_a if each.startswith(MAGIC + b"\x02")]
    [before] = a.node.status()["members"]

    assert send(c, to_a + from_a) == []
    assert send(c, to_a) == []

    replayed = 2 * (len(requests) + len(probes))
    wait_until(
        lambda: a.bad_packets().get("replayed", 0) >= replayed, "they are counted", timeout=10
    )
    assert a.bad_packets()["answer to no request of ours"] >= len(answers)
    [after] = a.node.status()["members"]
    assert after["endpoint"] == before["endpoint"] == "10.77.0.2:51820"
    assert after["incarnation"] == before["incarnation"]
    assert a.node.status()["self"]["ready"]
    assert a.node.ping(b.node.status()["self"]["ipv4"])


def test_no_port_of_a_member_answers_noise_by_any_way(machines, recorded):
    a, c = machines["a"], machines["c"]
    listening = a.sh("ss -lunH4 | awk '{print $4}'").split()
    ports = {int(address.rpartition(":")[2]) for address in listening}
    assert PORT in ports
    assert len(ports) == 2  # the other one is meshd's own, which nobody may reach directly

    for port in ports:
        assert send(c, [os.urandom(100), MAGIC + os.urandom(100)], port=port) == []


def test_a_seed_that_was_restarted_answers_a_recorded_request_to_nobodys_use(machines, recorded):
    a, c = machines["a"], machines["c"]
    requests = [p.payload for p in recorded if p.payload.startswith(MAGIC + b"\x01")]
    a.node.stop_daemon()
    a.start()
    a.wait_members(2)

    heard = send(c, requests[:1] * 5)

    # Sealed for the one who has made the request, no longer than it, and only once.
    assert len(heard) <= 1
    assert all(isinstance(length, int) and length <= len(requests[0]) for length in heard)
    [member] = a.node.status()["members"]
    assert member["endpoint"] == "10.77.0.2:51820"
