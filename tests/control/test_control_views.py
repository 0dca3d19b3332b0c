from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.scripted import INVITE, ME, MESH, NOW, ScriptedController, member
from meshd.control import views
from meshd.control.approval import pending_document
from meshd.control.invites import NewInvite, invite_document, invites_document
from meshd.control.lookup import find_member
from meshd.control.routes import ApiError
from meshd.control.snapshot import CredentialSnapshot, EventRecord, PingAnswer
from meshd.control.waiting import Condition
from meshd.keys import NodeId


def test_the_status_document_is_what_the_contract_says() -> None:
    document = views.status_document(MESH)
    assert document["schema"] == "meshd.status/1"
    assert document["mesh"] == {
        "id": str(MESH.id),
        "name": "home",
        "members": {"alive": 2, "suspect": 0, "dead": 1, "left": 0},
        "open": False,
    }
    assert document["self"] == {
        "id": str(ME.id),
        "name": "a",
        "ipv4": "100.64.0.1",
        "ipv6": "fd00::1",
        "public_key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        "interface": "mesh0",
        "listen_port": 51820,
        "backend": "kernel",
        "relay": True,
        "ready": True,
        "uptime_s": 12.5,
        "version": "0.1.0",
        "startup": {"import": 0.21, "bootstrap": 0.05},
        "health_score": 0,
        "counters": {"bad_packets": {"handshake does not open": 3}},
        "credential": None,
        "holds_mesh_key": False,
        "audit_head": "3:" + "07" * 32,
    }
    assert [shown["name"] for shown in document["members"]] == ["b", "c"]
    assert document["members"][0] == {
        "id": str(member("b", 2).id),
        "name": "b",
        "state": "alive",
        "incarnation": 1,
        "ipv4": "100.64.0.2",
        "ipv6": "fd00::2",
        "public_key": "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=",
        "endpoint": "203.0.113.7:51820",
        "path": "direct",
        "relay": None,
        "transport": None,
        "rtt_ms": 1.3,
        "last_handshake_s": 14.2,
        "rx_bytes": 1_300_000,
        "tx_bytes": 512,
        "tags": [],
        "routes": [],
        "version": "0.1.0",
        "expires_at": None,
        "post_quantum": True,
        "psk_age_s": 90.0,
    }
    assert document["health"] == [
        {"level": "warning", "code": "udp-blocked", "message": "no answer on UDP port 51820"}
    ]


def test_status_shows_what_admits_this_node_and_when_members_end() -> None:
    credential = CredentialSnapshot(
        issuer="b",
        issued_at=NOW,
        expires_at=NOW + 86400,
        tags=("db",),
        routes=(ip_network("10.0.0.0/8"),),
        relay=True,
    )
    shown = replace(
        MESH,
        me=replace(ME, credential=credential),
        members=(member("b", 2, expires_at=NOW + 1),),
    )

    document = views.status_document(shown)

    assert document["self"]["credential"] == {
        "issuer": "b",
        "issued_at": "2023-11-14T22:13:20.000Z",
        "expires_at": "2023-11-15T22:13:20.000Z",
        "tags": ["db"],
        "routes": ["10.0.0.0/8"],
        "admit": False,
        "relay": True,
    }
    assert document["members"][0]["expires_at"] == "2023-11-14T22:13:21.000Z"


def test_every_document_is_json_and_names_its_schema() -> None:
    controller = ScriptedController()
    documents = [
        views.status_document(MESH),
        views.peers_document(controller.peers()),
        invites_document(controller.invites(), controller.other_invites()),
        pending_document(controller.approval()),
        invite_document(NewInvite(INVITE, "meshd1.x")),
        views.events_document([EventRecord(NOW, "member-joined")]),
        views.ping_document(member("b", 2), 1, PingAnswer(None)),
        views.ping_summary_document(member("b", 2), [None]),
    ]
    for document in documents:
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        assert document["schema"].startswith("meshd.")


def test_details_of_an_event_do_not_hide_what_every_event_has() -> None:
    record = EventRecord(NOW, "path-changed", "b", "text", {"event": "other", "path": "direct"})
    assert views.event_document(record) == {
        "schema": "meshd.event/1",
        "at": "2023-11-14T22:13:20.000Z",
        "event": "path-changed",
        "member": "b",
        "message": "text",
        "path": "direct",
    }


def test_a_summary_counts_only_what_was_answered() -> None:
    summary = views.ping_summary_document(member("b", 2), [0.001, None, 0.003])
    assert (summary["sent"], summary["answered"]) == (3, 2)
    assert [summary[f"rtt_{which}_ms"] for which in ("min", "mean", "max")] == [1.0, 2.0, 3.0]


def test_a_token_is_in_no_repr() -> None:
    assert "secret" not in repr(NewInvite(INVITE, "meshd1.secret"))


# Who is meant

TWINS = replace(
    MESH,
    members=(
        member("b", 2),
        member("web-1", 3, id=NodeId(b"aaa" + bytes(29))),
        member("web-2", 4, id=NodeId(b"aaa" + bytes([1]) * 29)),
    ),
)


@pytest.mark.parametrize("by", ["name", "id", "id prefix", "ipv4", "ipv6", "upper-case id"])
def test_a_member_is_found_by_each_of_its_names(by: str) -> None:
    b = member("b", 2)
    text = {
        "name": "b",
        "id": str(b.id),
        "id prefix": str(b.id)[:10],
        "ipv4": str(b.ipv4),
        "ipv6": str(b.ipv6),
        "upper-case id": str(b.id).upper(),
    }[by]
    assert find_member(MESH, text) == b


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("web-3", "unknown-member", "did you mean web-2 or web-1?"),
        ("zzz", "unknown-member", "there are b, web-1, web-2"),
        ("mfqw", "ambiguous-member", "may mean web-1"),
        ("a", "own-name", "is this node itself"),
        ("fd00::1", "own-name", "is this node itself"),
        ("x" * 300, "unknown-member", "no member is called"),
    ],
)
def test_who_cannot_be_told_is_refused_with_a_hint(text: str, code: str, said: str) -> None:
    with pytest.raises(ApiError) as error:
        find_member(TWINS, text)
    assert error.value.code == code
    assert said in error.value.message


def test_a_lone_node_says_that_it_knows_nobody() -> None:
    with pytest.raises(ApiError, match="this node knows no other member"):
        find_member(replace(MESH, members=()), "b")


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_finds_a_member_or_is_refused(text: str) -> None:
    with suppress(ApiError):
        assert find_member(MESH, text) in MESH.members


# What can be waited for

RELAYED = replace(MESH, members=(member("b", 2, path="relayed", relay="c"), member("c", 3)))


@pytest.mark.parametrize(
    ("condition", "mesh", "lacks"),
    [
        (Condition(), MESH, None),
        (Condition(), replace(MESH, me=replace(ME, ready=False)), "this node is not ready"),
        (Condition(members=2), MESH, None),
        (Condition(members=3), MESH, "2 of 3 members are alive: c is dead"),
        (Condition(name="b"), MESH, None),
        (Condition(name="c"), MESH, "c is dead"),
        (Condition(name="c", state="dead"), MESH, None),
        (Condition(name="d"), MESH, "no member is called 'd'"),
        (Condition(path="direct"), MESH, None),
        (Condition(path="direct"), RELAYED, "b has a relayed path"),
        (Condition(name="b", path="relayed"), RELAYED, None),
        (Condition(name="c", path="relayed"), RELAYED, "c has a direct path"),
        (Condition(members=3, name="c", path="direct"), RELAYED, None),
    ],
)
def test_a_condition_says_what_it_lacks(condition, mesh, lacks) -> None:
    assert condition.lacks(mesh) == lacks
