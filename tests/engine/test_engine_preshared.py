"""Pre-shared keys in a whole mesh: they come by themselves, and nobody's tunnel ever notices."""

from dataclasses import replace

import pytest

from engine.engine_world import World, all_ping, whole
from meshd.engine.handover import Handover
from meshd.preshared.agreements import PresharedConfig
from meshd.preshared.keys import NO_KEY
from preshared.preshared_kem import FakeKem

SOON = 60.0
ROTATION = 400.0


def mesh_with_keys(size, *, seed=1, **config):
    world = World(seed=seed)
    machines = world.mesh_of(size, preshared=PresharedConfig(**config))
    for machine in machines:
        machine.kem = FakeKem(machine.name)
    return world, machines


def in_kernel(machine, other):
    peer = machine.wireguard.observe().peers.get(other.public_key)
    return None if peer is None else peer.preshared_key


def share_keys(*machines):
    """Whether each pair has one key of its own, in both kernels."""
    keys = set()
    for machine in machines:
        for other in machines:
            if machine is other:
                continue
            key = in_kernel(machine, other)
            if key is None or key != in_kernel(other, machine):
                return False
            keys.add(key)
    return len(keys) == len(machines) * (len(machines) - 1) // 2


def post_quantum(machine, other):
    peer = machine.wireguard.observe().peers[other.public_key]
    return machine.engine.preshared.post_quantum(other.node, peer)


def flow(world, source, target, *, seconds, spacing=0.5):
    """Ping all the while.  Return the longest silence."""
    heard_at, longest = world.now, 0.0
    end = world.now + seconds
    while world.now < end:
        if source.ping(target.ipv4, within=spacing):
            heard_at = world.now
        longest = max(longest, world.now - heard_at)
        world.run_for(spacing)
    return longest


def test_every_pair_has_a_key_soon_and_uses_it_from_the_next_handshake_on():
    world, machines = mesh_with_keys(4)
    a, b, *_ = machines

    world.run_until(lambda: share_keys(*machines), within=SOON)
    assert not post_quantum(a, b)

    assert flow(world, a, b, seconds=150.0) == 0.0
    assert post_quantum(a, b)
    assert post_quantum(b, a)
    assert all_ping(*machines)
    assert sum(machine.wireguard.mismatches for machine in machines) == 0


def test_a_handshake_counts_as_by_the_key_from_when_the_kernel_was_seen_to_have_it():
    world, (a, b) = mesh_with_keys(2)
    world.run_until(lambda: share_keys(a, b), within=SOON)
    world.run_for(0.1)
    peer = a.wireguard.observe().peers[b.public_key]

    def counts(handshake_at):
        shaken = replace(peer, last_handshake_time=handshake_at)
        return a.engine.preshared.post_quantum(b.node, shaken)

    assert counts(a.wall)  # not only from the next second on
    assert not counts(a.wall - SOON)


def test_nobody_waits_for_keys_to_join():
    world, machines = mesh_with_keys(2)
    world.run_until(lambda: share_keys(*machines), within=SOON)

    late = world.machine("late", preshared=PresharedConfig())
    late.kem = FakeKem("late")
    late.start(seeds=machines[:1])

    assert world.run_until(lambda: whole(*machines, late), within=5.0) < 2.0
    world.run_until(lambda: share_keys(*machines, late), within=SOON)


def test_keys_are_replaced_under_traffic_without_a_pause():
    world, machines = mesh_with_keys(2, rotation=ROTATION)
    a, b = machines
    world.run_until(lambda: share_keys(a, b), within=SOON)
    first = in_kernel(a, b)

    assert flow(world, a, b, seconds=2 * ROTATION + SOON) == 0.0

    assert share_keys(a, b)
    assert in_kernel(a, b) != first
    assert len(a.of("psk-agreed") + b.of("psk-agreed")) >= 3
    assert a.wireguard.mismatches == b.wireguard.mismatches == 0


def test_a_restart_keeps_key_and_session():
    world, machines = mesh_with_keys(2)
    a, b = machines
    world.run_until(lambda: share_keys(a, b), within=SOON)
    key, handshakes = in_kernel(a, b), b.wireguard.handshakes

    b.kill()
    b.start()
    world.run_until(lambda: whole(a, b), within=10.0)
    world.run_for(5.0)

    assert in_kernel(a, b) == in_kernel(b, a) == key
    assert b.wireguard.handshakes == handshakes


@pytest.mark.parametrize("who", [0, 1], ids=["a", "b"])
def test_a_daemon_that_has_lost_its_keys_shares_new_ones_without_a_pause(who):
    world, machines = mesh_with_keys(2)
    world.run_until(lambda: share_keys(*machines), within=SOON)
    world.run_for(5.0)
    key = in_kernel(*machines)
    victim, other = machines[who], machines[1 - who]

    victim.kill()
    victim.disk.keyrings.clear()
    victim.start()
    world.run_until(lambda: in_kernel(*machines) is None and whole(*machines), within=5.0)

    assert in_kernel(other, victim) is None
    assert [notice.name for notice in other.of("psk-lost")] == [victim.name]
    assert flow(world, *machines, seconds=200.0) == 0.0
    assert share_keys(*machines)
    assert in_kernel(*machines) != key


@pytest.mark.parametrize("who", [0, 1], ids=["a", "b"])
@pytest.mark.parametrize("disk", ["intact", "without keys", "restored"])
def test_a_machine_that_was_switched_off_is_back_at_once(who, disk):
    """The first handshake waits for a pong that says which keys there are."""
    world, machines = mesh_with_keys(2, rotation=ROTATION)
    world.run_until(lambda: share_keys(*machines), within=SOON)
    world.run_for(5.0)
    victim = machines[who]
    backup = dict(victim.disk.keyrings)
    if disk == "restored":
        first = in_kernel(*machines)
        world.run_until(
            lambda: share_keys(*machines) and in_kernel(*machines) != first, within=2 * ROTATION
        )
        world.run_for(2 * ROTATION)  # the copy is of keys that the other has dropped

    victim.power_off()
    world.run_for(10.0)
    if disk == "without keys":
        victim.disk.keyrings.clear()
    elif disk == "restored":
        victim.disk.keyrings = backup
    victim.start()

    assert world.run_until(lambda: whole(*machines), within=10.0) < 2.0
    assert all_ping(*machines)
    world.run_until(lambda: share_keys(*machines), within=SOON)


@pytest.mark.parametrize("who", [0, 1], ids=["a", "b"])
@pytest.mark.parametrize("seed", range(1, 7))
def test_no_handshake_is_begun_that_would_fail_for_different_keys(seed, who):
    """It would be tried again after 5 s only.  So `installed` in a pong means: and in step."""
    world, machines = mesh_with_keys(2, seed=seed)
    world.run_until(lambda: share_keys(*machines), within=SOON)
    world.run_for(1.0)
    victim, other = machines[who], machines[1 - who]

    victim.power_off()
    world.run_for(1.5 if seed % 2 else 10.0)
    victim.disk.keyrings.clear()
    victim.start()

    world.run_until(lambda: whole(*machines) and victim.ping(other.ipv4), within=2.0)
    assert sum(machine.wireguard.mismatches for machine in machines) == 0


def test_a_member_without_keys_of_this_kind_has_its_tunnels_all_the_same():
    world, machines = mesh_with_keys(3)
    a, b, old = machines
    old.kill()
    old.options["preshared"] = PresharedConfig(enabled=False)
    old.start()
    world.run_until(lambda: whole(*machines), within=10.0)

    world.run_until(lambda: share_keys(a, b), within=SOON)
    world.run_for(SOON)

    assert in_kernel(a, old) is in_kernel(old, a) is None
    assert a.engine.preshared.takes_no_part(old.node)
    assert not a.engine.preshared.takes_no_part(b.node)
    assert all_ping(*machines)


def test_the_key_stays_when_a_wireguard_key_is_replaced():
    world, machines = mesh_with_keys(2)
    a, b = machines
    world.run_until(lambda: share_keys(a, b), within=SOON)
    key, before = in_kernel(a, b), a.public_key

    a.engine.rotate_key(world.now, world.wall)
    a.drain()
    world.run_until(lambda: a.public_key != before and share_keys(a, b), within=SOON)

    assert in_kernel(a, b) == in_kernel(b, a) == key
    assert all_ping(a, b)
    assert post_quantum(a, b)  # the rotation takes a handshake
    assert a.wireguard.mismatches == b.wireguard.mismatches == 0


def test_a_forgotten_member_leaves_no_key_behind():
    world, machines = mesh_with_keys(2)
    a, b = machines
    world.run_until(lambda: share_keys(a, b), within=SOON)
    assert b.node in a.disk.keyrings

    b.power_off()
    world.run_for(20.0)
    a.forget(b)

    assert b.node not in a.disk.keyrings


def test_a_probe_sent_again_takes_no_key_away():
    """What an outsider can do: record pings and pongs from before there was a key, and repeat them.

    They say that their sender holds nothing.
    """
    world = World()
    recorded = []
    carry = world.carry

    def record(sender, payload, source, target):
        if isinstance(payload, bytes) and payload[:5] == b"mesh\x03":
            recorded.append((sender, payload, source, target))
        carry(sender, payload, source, target)

    world.carry = record
    machines = [world.machine(f"n{number}", preshared=PresharedConfig()) for number in range(2)]
    for machine in machines:
        machine.kem = FakeKem(machine.name)
        machine.start(seeds=() if machine is machines[0] else machines[:1])
    world.run_until(lambda: whole(*machines), within=10.0)
    world.carry = carry
    world.run_until(lambda: share_keys(*machines), within=SOON)
    world.run_for(5.0)
    for machine in machines:  # so that the replay guard has forgotten
        machine.kill()
        machine.start()
    world.run_until(lambda: whole(*machines), within=10.0)
    key = in_kernel(*machines)
    assert len(recorded) >= 4

    for _, payload, source, target in recorded:
        receiver = next(m for m in machines if target.address in m.addresses)
        receiver.receive(payload, source, target.address)
        assert (
            receiver.engine.preshared.preshared_key(
                next(m for m in machines if m is not receiver).node
            )
            == key
        )
    world.run_for(5.0)

    assert share_keys(*machines)
    assert in_kernel(*machines) == key
    assert all(not machine.of("psk-lost") for machine in machines)
    assert all_ping(*machines)


def test_no_message_of_an_agreement_exceeds_an_overlay_datagram():
    world, machines = mesh_with_keys(2, rotation=ROTATION)
    sizes = {}
    for machine in machines:
        send = machine.engine.send_overlay

        def measured(datagram, node, send=send):
            if datagram[0] in {Handover.KEY_OFFER, Handover.KEY_ANSWER, Handover.KEY_CONFIRM}:
                sizes[Handover(datagram[0])] = max(
                    sizes.get(Handover(datagram[0]), 0), len(datagram)
                )
            send(datagram, node)

        machine.engine.send_overlay = measured

    world.run_for(2 * ROTATION + SOON)

    assert sizes == {
        Handover.KEY_OFFER: 1212,
        Handover.KEY_ANSWER: 1143,
        Handover.KEY_CONFIRM: 42,
    }


def test_no_key_is_in_what_the_daemon_is_told():
    world, machines = mesh_with_keys(2)
    world.run_until(lambda: share_keys(*machines), within=SOON)
    key = in_kernel(*machines)
    assert key not in {None, NO_KEY}

    told = repr([machine.events for machine in machines])

    assert "KeyringChanged" in told
    assert repr(bytes(key))[2:-1] not in told
    assert key.hex() not in told


def test_one_seed_gives_one_history():
    def history():
        world, machines = mesh_with_keys(3, seed=7)
        world.run_until(lambda: share_keys(*machines), within=SOON)
        return world.trace_hash

    assert history() == history()


def test_restoring_a_whole_disk_is_no_harm():
    world, machines = mesh_with_keys(3, rotation=ROTATION)
    world.run_until(lambda: share_keys(*machines), within=SOON)
    a, b, c = machines
    backup = b.disk.copy()
    world.run_for(3 * ROTATION)

    b.power_off()
    b.disk = replace(backup, starts=b.disk.starts, incarnation=b.disk.incarnation)
    b.start()
    world.run_until(lambda: whole(a, b, c), within=15.0)

    world.run_until(lambda: share_keys(a, b, c), within=SOON)
    assert flow(world, a, b, seconds=200.0) == 0.0
