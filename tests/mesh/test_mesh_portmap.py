"""A port that a router maps makes a member reachable whom nobody could have reached directly.

                     transit 20.0.2.0/24
      +-------------------+---------------------+
      |                   |                     |
   router of public1   router of apd1        router of apd2     both of another port towards
      |                   | with miniupnpd      |               each endpoint: RFC 4787's worst
   public1              apd1                  apd2

The transit's addresses are somebody's: miniupnpd maps no port of an address that is reserved for
documentation.  Nothing leaves the lab's namespaces.
"""

import contextlib
import subprocess
import time
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network

import pytest

from lablib import mesh as control
from lablib import moves, wait_until
from lablib.nats import KINDS, PUBLIC
from lablib.sites import nats
from lablib.topology import TRANSIT_IPV4
from mesh.meshes import PATIENCE, SEED_PORT, mesh_of
from portmap.routers import configuration

pytestmark = [pytest.mark.netns, pytest.mark.slow]

REAL_TRANSIT = IPv4Network("20.0.2.0/24")

# Beside the table that makes it what it is: what that one drops, it lets through once translated.
RULES = """
table inet mapping {
  chain mapped { }
  chain prerouting_mapped { }
  chain postrouting_mapped { }
  chain prerouting {
    type nat hook prerouting priority dstnat - 1; policy accept;
    iifname wan jump prerouting_mapped
  }
}
"""


def on_real_addresses(plan):
    """The same topology, with a transit network that is nobody's example."""

    def moved(address):
        return REAL_TRANSIT[int(address) - int(TRANSIT_IPV4.network_address)]

    def port(each):
        if each.ipv4.ip not in TRANSIT_IPV4:
            return each
        return replace(each, ipv4=IPv4Interface((moved(each.ipv4.ip), REAL_TRANSIT.prefixlen)))

    def route(network, gateway):
        return network, moved(gateway) if gateway in TRANSIT_IPV4 else gateway

    return replace(
        plan,
        segments=tuple(
            replace(s, ipv4=REAL_TRANSIT) if s.ipv4 == TRANSIT_IPV4 else s for s in plan.segments
        ),
        routers=tuple(
            replace(
                router,
                ports=tuple(map(port, router.ports)),
                routes=tuple(route(*each) for each in router.routes),
            )
            for router in plan.routers
        ),
    )


def router_of(lab, node):
    """The router that a member's packets go through, and its outside."""
    wire = node.member.port.segment
    router = next(
        router
        for router in lab.topology.routers
        if any(port.segment == wire for port in router.ports[1:])
    )
    return lab.namespaces[router.name], router.uplink.ipv4.ip


@contextlib.contextmanager
def port_mapping_on(machine):
    """Run miniupnpd on a router."""
    machine.run(["nft", "-f", "-"], stdin=RULES)
    file = machine.file("/etc/miniupnpd.conf")
    text = configuration().replace("table_name=router", "table_name=mapping")
    file.write_text(text.replace("nat_table_name=router", "nat_table_name=mapping"))
    log = (machine.log_directory / "miniupnpd.log").open("wb")
    argv = ["miniupnpd", "-f", "/etc/miniupnpd.conf", "-P", "/run/miniupnpd.pid", "-d"]
    process = machine.popen(argv, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)
        log.close()


def test_a_mapped_port_is_the_direct_way_between_two_symmetric_nats(measured):
    plan = on_real_addresses(nats((PUBLIC, KINDS["apd"])))
    with mesh_of(plan) as mesh:
        public, mapped, other = (mesh.lab[name] for name in ("public1", "apd1", "apd2"))
        machine, outside = router_of(mesh.lab, mapped)
        with port_mapping_on(machine):
            began_at = time.monotonic()
            mesh.form([public, mapped, other])
            expected = f"{outside}:{SEED_PORT}"

            wait_until(
                lambda: moves.endpoint(other, mapped) == expected,
                f"apd2 sends to apd1 at {expected}",
                timeout=PATIENCE,
            )
            measured("s until direct by the mapped port", time.monotonic() - began_at)
            mesh.ping_all(mapped, other)
            assert moves.path(other, mapped) == "direct"

            mapped.meshctl("leave")
            listed = machine.run(["nft", "list", "chain", "inet", "mapping", "prerouting_mapped"])
            assert "dnat" not in listed.stdout, "who leaves gives its port back"


def test_a_mesh_is_joined_at_a_port_that_a_router_maps():
    """The founder is behind NAT, and nobody else is there."""
    with mesh_of(on_real_addresses(nats((PUBLIC, KINDS["apd"])))) as mesh:
        founder, newcomer = mesh.lab["apd1"], mesh.lab["apd2"]
        machine, _ = router_of(mesh.lab, founder)
        with port_mapping_on(machine):
            control.found(founder)
            wait_until(
                lambda: founder.control("/v1/netcheck")["port_mapping"]["endpoint"],
                "the port is mapped",
                timeout=PATIENCE,
            )

            control.admit(newcomer, by=founder)

            mesh.wait_whole(founder, newcomer)
            mesh.ping_all(founder, newcomer)


def test_without_it_the_router_is_not_asked():
    plan = on_real_addresses(nats((PUBLIC, KINDS["apd"])))
    with mesh_of(plan) as mesh:
        public, mapped = (mesh.lab[name] for name in ("public1", "apd1"))
        machine, _ = router_of(mesh.lab, mapped)
        with port_mapping_on(machine):
            mapped.file("/etc/meshd/meshd.toml").write_text("port_mapping = false\n")
            mesh.form([public, mapped])
            log = (machine.log_directory / "miniupnpd.log").read_text()

    assert "request" not in log.lower()
