"""Switching forwarding on, and putting it back."""

import pytest

from meshd.net import forwarding
from meshd.net.forwarding import Note
from meshd.net.relay_nft import Fence
from net.relays import machines

pytestmark = pytest.mark.netns

ALL_OF_IT = "cat /proc/sys/net/ipv[46]/conf/*/forwarding /proc/sys/net/ipv6/conf/*/accept_ra"


@pytest.fixture
def relay():
    with machines() as (_, between, _):
        yield between


def value(namespace, key):
    return namespace.run(f"cat /proc/sys/net/{key}").strip()


def switched_on(namespace, *, ipv4=True, ipv6=True, note=None):
    note = namespace.call(forwarding.plan, note or Note(), ("one", "two"), ipv4=ipv4, ipv6=ipv6)
    namespace.call(forwarding.switch_on, note)
    return note


def test_all_is_put_back_as_it_was(relay):
    before = relay.run(ALL_OF_IT)

    note = switched_on(relay)
    assert relay.run(ALL_OF_IT) != before
    relay.call(forwarding.put_back, note)

    assert relay.run(ALL_OF_IT) == before


def test_only_the_interfaces_concerned_forward_ipv4(relay):
    switched_on(relay)

    assert value(relay, "ipv4/ip_forward") == "0"
    assert value(relay, "ipv4/conf/one/forwarding") == "1"
    assert value(relay, "ipv4/conf/lo/forwarding") == "0"


def test_one_ip_version_does_not_bring_the_other(relay):
    switched_on(relay, ipv6=False)
    assert value(relay, "ipv6/conf/all/forwarding") == "0"

    note = switched_on(relay, ipv4=False)
    assert note.ipv4 == ()
    assert value(relay, "ipv6/conf/all/forwarding") == "1"


def test_router_advertisements_are_taken_as_before(relay):
    relay.run("echo 0 >/proc/sys/net/ipv6/conf/two/accept_ra")

    switched_on(relay)

    assert value(relay, "ipv6/conf/one/accept_ra") == "2"
    assert value(relay, "ipv6/conf/default/accept_ra") == "2"
    assert value(relay, "ipv6/conf/two/accept_ra") == "0"


def test_a_default_route_that_a_router_has_advertised_stays(relay):
    relay.run("ip -6 route add default via fd01::2 dev one proto ra")

    switched_on(relay)

    assert "default via fd01::2" in relay.run("ip -6 route")


def test_what_is_noted_stays_noted(relay):
    note = switched_on(relay)

    assert switched_on(relay, note=note) == note
    assert relay.call(forwarding.fence, note) == Fence(("one", "two"), ipv6=True)


def test_a_host_that_begins_to_forward_by_itself_is_let(relay):
    note = switched_on(relay, ipv6=False)
    relay.run("sysctl -qw net.ipv4.ip_forward=1")

    assert relay.call(forwarding.fence, note) == Fence()
    relay.call(forwarding.put_back, note)

    assert value(relay, "ipv4/conf/one/forwarding") == "1"


def test_an_interface_that_has_gone_is_no_error(relay):
    note = switched_on(relay)
    relay.run("ip link del one")

    relay.call(forwarding.switch_on, note)
    relay.call(forwarding.put_back, note)

    assert value(relay, "ipv4/conf/two/forwarding") == "0"


def test_a_note_is_good_in_its_own_network_namespace_and_for_its_boot(relay, monkeypatch, tmp_path):
    note = Note(("one", "ü"), ipv6=True, accept_ra=("default",))
    kept = forwarding.pack_note(note)

    assert forwarding.unpack_note(kept) == note
    assert forwarding.unpack_note(None) == Note()
    for damaged in (b"", kept[:-1], b"[]", b'{"kernel": 1}'):
        assert forwarding.unpack_note(damaged) == Note()
    other = tmp_path / "boot_id"
    other.write_text("another\n")
    monkeypatch.setattr(forwarding, "BOOT_ID", other)
    assert forwarding.unpack_note(kept) == Note()
