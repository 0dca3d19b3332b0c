"""Two members that claim one IPv4 address: the later admitted moves, and says so first."""

import json
import time

import pytest

from lablib import lan, wait_until
from lablib import mesh as mesh_lab
from mesh.meshes import PATIENCE, member, mesh_of

pytestmark = [pytest.mark.netns, pytest.mark.slow]

CONTESTED = "100.64.3.3"


def start(mesh, node, *arguments, seed=None):
    """Start meshd with an address to claim."""
    file = node.file(mesh_lab.SECRET_FILE)
    file.touch(mode=0o600)
    file.write_text(f"{mesh.secret}\n")
    seeds = () if seed is None else ("--seed", str(seed.ipv4.ip))
    node.start_daemon(
        "--secret-file", mesh_lab.SECRET_FILE, "--name", node.name, *seeds, *arguments
    )


def on_the_link(node):
    """The IPv4 addresses of the mesh's interface, and the source its route prefers."""
    shown = json.loads(node.run(["ip", "-4", "-j", "addr", "show", "mesh0"]).stdout)
    (route,) = json.loads(node.run(["ip", "-4", "-j", "route", "show", "dev", "mesh0"]).stdout)
    return {address["local"] for address in shown[0]["addr_info"]}, route["prefsrc"]


def tunnel_of(node, address):
    """The member whose tunnel an address is in."""
    peers = node.control("/v1/peers")["peers"]
    return [peer["member"] for peer in peers if f"{address}/32" in peer["allowed_ips"]]


def test_the_loser_has_its_new_address_before_the_old_one_goes(measured):
    with mesh_of(lan(3)) as mesh:
        bystander, winner, loser = mesh.nodes
        # Admitted first, by its own word, while nobody can hear of it.
        winner.link_down()
        start(mesh, winner, "--address", CONTESTED, seed=bystander)
        mesh_lab.wait_answering(winner)
        time.sleep(1.1)  # admission is dated in whole seconds
        start(mesh, bystander)
        start(mesh, loser, "--address", CONTESTED, seed=bystander)
        mesh.wait_whole(bystander, loser)
        assert tunnel_of(bystander, CONTESTED) == ["c"]

        winner.link_up()

        def both():
            addresses, source = on_the_link(loser)
            assert CONTESTED in addresses
            assert len(addresses) == 2
            assert source != CONTESTED
            return time.monotonic()

        made_at = wait_until(both, "the loser has both addresses", timeout=PATIENCE)
        wait_until(
            lambda: tunnel_of(bystander, CONTESTED) == ["b"], "the winner's", timeout=PATIENCE
        )
        new = mesh.address(loser)
        wait_until(lambda: on_the_link(loser)[0] == {new}, "the old one is gone", timeout=PATIENCE)
        measured("s with both addresses", time.monotonic() - made_at)
        for node in (bystander, winner):
            assert member(node, "c")["ipv4"] == new
        mesh.wait_whole()
        mesh.ping_all()
        assert "address-changed" in loser.log_text()
        assert "address-changed" not in winner.log_text()
