"""`meshctl why`, `netcheck`, `relays`, `drain`, and how `ping` ends: asked of a real server."""

import json
from dataclasses import replace
from functools import partial

import pytest
import trio

from control.scripted import MESH, NETCHECK, RELAYS, ScriptedController, member, node_id, serving
from meshd import meshctl
from meshd.control.netcheck import NetcheckSnapshot, PortMappingSnapshot


@pytest.fixture
def ctl(tmp_path):
    async def run(*arguments):
        argv = ["--runtime-dir", str(tmp_path), *arguments]
        return await trio.to_thread.run_sync(partial(meshctl.main, argv))

    return run


def relayed_mesh():
    b = member("b", 2, path="relayed", relay="r", rtt=0.0041)
    return replace(MESH, members=(b, MESH.members[0]))


async def test_why_says_the_path_the_reason_what_was_tried_and_what_to_do(tmp_path, ctl, capsys):
    async with serving(ScriptedController(mesh=relayed_mesh()), tmp_path):
        assert await ctl("why", "b") == 0

    assert capsys.readouterr().out == (
        "b: alive, relayed via r, 4.1ms\n"
        "b has only private addresses to tell, and this node's NAT uses another port towards each "
        "destination\n"
        "\n"
        "TRIED                   CLASS    RESULT     RTT    ASKED   WORKED\n"
        "192.168.3.2:51820       lan      no answer  -      3s ago  never\n"
        "203.0.113.9:51900 of r  relayed  in use     4.1ms  0s ago  0s ago\n"
        "\n"
        "for a direct path:\n"
        "  lead UDP port 51820 from this node's router to it, and say so with `--endpoint "
        "ADDRESS:51820`; or switch on PCP, NAT-PMP or UPnP in the router\n"
        "  or do the same at b: one of the two is enough\n"
        "  or give both IPv6: there is no NAT in it, only firewalls, which open from both sides\n"
    )


async def test_why_fails_where_there_is_no_path(tmp_path, ctl, capsys):
    async with serving(ScriptedController(pairs=()), tmp_path):
        assert await ctl("why", "c") == 1
        assert await ctl("why", "x") == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("c: dead, no path\n")
    assert "no member is called 'x'" in captured.err


async def test_netcheck_tells_of_nats_ports_and_relays(tmp_path, ctl, capsys):
    async with serving(ScriptedController(), tmp_path):
        assert await ctl("netcheck") == 0
        out = capsys.readouterr().out
        assert await ctl("netcheck", "--json") == 0
        document = json.loads(capsys.readouterr().out)

    assert "mapping address-and-port-dependent" in out
    assert "ports not preserved" in out
    assert "port mapping: switched off" in out
    assert "192.168.2.2:51820 (host)" in out
    assert document["schema"] == "meshd.netcheck/1"
    assert document["nats"][0]["port_preserving"] is False
    assert document["relays"] == [{"name": "r", "endpoint": "203.0.113.9:51820", "rtt_ms": 2.0}]


@pytest.mark.parametrize(
    ("mapping", "shown"),
    [
        (
            PortMappingSnapshot("mapped", "PCP", NETCHECK.relays[0].endpoint, 3600.0, ""),
            "203.0.113.9:51820 by PCP, for 60m more",
        ),
        (PortMappingSnapshot("refused", "UPnP", None, None, "not authorized"), "not authorized"),
        (PortMappingSnapshot("double-nat", None, None, None, ""), "itself behind NAT"),
        (PortMappingSnapshot("silent", None, None, None, ""), "neither PCP nor NAT-PMP nor UPnP"),
    ],
)
async def test_netcheck_tells_what_became_of_the_port_mapping(
    tmp_path, ctl, capsys, mapping, shown
):
    network = replace(NETCHECK, port_mapping=mapping)
    async with serving(ScriptedController(network=network), tmp_path):
        assert await ctl("netcheck") == 0
    assert shown in capsys.readouterr().out


async def test_netcheck_of_a_node_that_knows_nothing_yet_is_no_error(tmp_path, ctl, capsys):
    nothing = NetcheckSnapshot(51820, 51821, 1420, (), None, (), ())
    async with serving(ScriptedController(network=nothing), tmp_path):
        assert await ctl("netcheck") == 0
    out = capsys.readouterr().out
    assert "no usable address" in out
    assert "51821" in out


async def test_relays_shows_both_directions(tmp_path, ctl, capsys):
    async with serving(ScriptedController(), tmp_path):
        assert await ctl("relays") == 0
    assert capsys.readouterr().out == (
        "RELAY  STATE  REACHED AT         RTT    CARRIES  SPARE FOR\n"
        "r      alive  203.0.113.9:51900  2.0ms  b        c\n"
        "\n"
        "this node relays 1 of at most 1024 pairs by UDP ports 51900 to 53947; 2 datagrams of "
        "strangers dropped\n"
        "\n"
        "MEMBERS  PORTS        STATE     CARRIED  ENDS IN\n"
        "b c      51900 51901  forwards  1.2M     8m\n"
    )


async def test_a_node_that_does_not_relay_says_why(tmp_path, ctl, capsys):
    idle = replace(RELAYS, relaying=False, why_not="its credential does not let it", pairs=())
    async with serving(ScriptedController(relayed=replace(idle, relays=())), tmp_path):
        assert await ctl("relays") == 0
    out = capsys.readouterr().out
    assert out.startswith("no other member relays\n")
    assert "its credential does not let it" in out


async def test_drain_and_undrain_say_what_is_left_to_move(tmp_path, ctl, capsys):
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("drain") == 0
        assert "1 is asked to move" in capsys.readouterr().out
        assert await ctl("undrain") == 0
    assert "relays 1 of at most 1024" in capsys.readouterr().out
    assert controller.asked == [("drain", True), ("drain", False)]


async def test_ping_goes_on_until_the_way_is_direct(tmp_path, ctl, capsys):
    controller = ScriptedController(paths=[("relayed", "r"), ("relayed", "r"), ("direct", None)])
    async with serving(controller, tmp_path):
        assert await ctl("ping", "b", "-i", "10ms") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ", 1)[1] for line in lines[:3]] == [
        "relayed via r",
        "relayed via r",
        "direct 203.0.113.7:51820",
    ]
    assert lines[3].startswith("b: 3 sent, 3 answered")
    assert controller.asked == [("ping", node_id(2))] * 3


async def test_ping_that_is_told_how_often_does_not_stop_before(tmp_path, ctl, capsys):
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("ping", "b", "-c", "2", "-i", "10ms") == 0
    assert "b: 2 sent, 2 answered" in capsys.readouterr().out
