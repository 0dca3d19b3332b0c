"""Port mapping against a real router's daemon: miniupnpd, which speaks all three protocols."""

import socket

import pytest

from portmap.routers import OUTSIDE, home, mapping

pytestmark = pytest.mark.netns

PORT = 51820
EPOCH_TOLD = 5
METHODS = {
    "PCP": {},
    "UPnP": {"nat_pmp": False},
}


def is_mapped(view):
    return view["state"] == "mapped"


@pytest.mark.parametrize("method", METHODS)
def test_a_router_maps_the_port_and_unmaps_it_when_it_is_told(method, tmp_path):
    with home(tmp_path) as house:
        house.start_daemon(**METHODS[method])
        with mapping(house) as running:
            view = running.until(is_mapped)

            assert view["method"] == method
            assert view["endpoint"] == f"{OUTSIDE}:{PORT}"
            assert house.mapped() == {PORT: f"192.168.2.2:{PORT}"}
            running.tell("release")
            running.until(lambda view: view["state"] == "released")
            running.until(lambda _: house.mapped() == {})


def test_a_mapping_outlives_the_one_who_asked_and_is_had_again_by_its_next_run(tmp_path):
    with home(tmp_path) as house:
        house.start_daemon()
        with mapping(house) as running:
            running.until(is_mapped)
        assert house.mapped() == {PORT: f"192.168.2.2:{PORT}"}

        with mapping(house) as running:
            running.until(is_mapped)


def test_a_port_that_is_anothers_is_not_taken_from_it(tmp_path):
    """Another machine of the house has it."""
    with home(tmp_path) as house:
        house.start_daemon(nat_pmp=False)
        with mapping(house) as running:
            running.until(is_mapped)
        house.host.run("ip address del 192.168.2.2/24 dev eth0")
        house.host.run("ip address add 192.168.2.3/24 dev eth0")
        house.host.run("ip route add default via 192.168.2.1")

        with mapping(house) as running:
            view = running.until(is_mapped)

        assert view["endpoint"] != f"{OUTSIDE}:{PORT}"
        assert len(house.mapped()) == 2


def test_a_router_that_starts_anew_is_asked_again(tmp_path):
    with home(tmp_path) as house:
        house.start_daemon()
        with mapping(house) as running:
            running.until(is_mapped)
            # Before, its epoch says nothing: RFC 6887 section 8.5 leaves clocks two seconds.
            running.until(lambda _: house.epoch() > EPOCH_TOLD)
            house.stop_daemon()
            house.router.run("nft flush chain inet router prerouting_mapped")
            house.start_daemon()

            running.until(lambda _: house.mapped() == {PORT: f"192.168.2.2:{PORT}"})


def test_a_router_behind_another_nat_gives_no_candidate(tmp_path):
    """It refuses, as one that knows its standards does."""
    with home(tmp_path, outside="10.9.8.7") as house:
        house.start_daemon()
        with mapping(house) as running:
            view = running.until(lambda view: view["state"] in {"double-nat", "refused"})

            assert view["endpoint"] is None


def test_a_liar_in_the_lan_gets_nothing_but_a_candidate(tmp_path):
    """It answers NAT-PMP from the router's own address with whatever it likes."""
    with home(tmp_path) as house:
        liar = house.router.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        with liar:
            liar.bind(("192.168.2.1", 5351))
            liar.settimeout(30)
            with mapping(house) as running:
                _, source = liar.recvfrom(2048)
                liar.sendto(bytes.fromhex("0081000100000007"), source)
                while liar.recvfrom(2048)[0] != b"\0\0":
                    pass
                liar.sendto(bytes.fromhex("0080000000000007") + b"\x64\x40\0\1", source)
                while liar.recvfrom(2048)[0][:2] != b"\0\1":
                    pass
                liar.sendto(bytes.fromhex("0081000000000007ca6c123400000e10"), source)

                view = running.until(lambda view: view["state"] == "double-nat")

        assert view["endpoint"] is None
        assert view["findings"] == ["double-nat"]
