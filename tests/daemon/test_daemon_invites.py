"""Which invite an operator means, and what is left of it."""

from types import SimpleNamespace

import pytest

from meshd.control.routes import ApiError
from meshd.daemon import invites
from meshd.daemon.invites import KEPT_FOR, _make_room, find_invite, state_name
from meshd.keys import InviteId, NodeId
from meshd.store import Store, StoredInvite
from meshd.trust.invite import Invite
from meshd.trust.invite_use import InviteState

A, B = InviteId(b"\x11" * 32), InviteId(b"\x11" * 3 + b"\x77" * 29)
NODE = NodeId(b"\x05" * 32)
ISSUED = Invite(A, NODE, expires_at=1000)


@pytest.mark.parametrize("text", [str(A), str(A).upper(), str(A)[:8]])
def test_an_invite_is_meant_by_its_id_or_enough_of_it(text):
    assert find_invite([A, B], text) == A


def test_too_little_of_an_id_means_none():
    assert str(A)[:4] == str(B)[:4]
    with pytest.raises(ApiError) as refused:
        find_invite([A, B], str(A)[:4])
    assert refused.value.code == "ambiguous-invite"
    with pytest.raises(ApiError) as refused:
        find_invite([A], str(A)[:3])
    assert refused.value.code == "unknown-invite"


def test_a_whole_id_is_enough_for_an_invite_nobody_has_used():
    assert find_invite([], str(A)) == A
    for text in ("", "nonsense", str(A)[:-1], str(A) + "a", "ü" * 52, str(NODE)[:30]):
        with pytest.raises(ApiError) as refused:
            find_invite([], text)
        assert refused.value.code == "unknown-invite"


@pytest.mark.parametrize(
    ("state", "issued", "wall", "void", "name"),
    [
        (InviteState(), ISSUED, 1000, False, "open"),
        (InviteState(), ISSUED, 1001, False, "expired"),
        (InviteState(), ISSUED, 999, True, "void"),
        (InviteState(), ISSUED, 1001, True, "expired"),
        (InviteState({NODE: 5}, 1), ISSUED, 1001, True, "used"),
        (InviteState({NODE: 5}, 2), ISSUED, 999, False, "open"),
        (InviteState({NODE: 5}, 1, 7), ISSUED, 999, False, "withdrawn"),
        (InviteState({NODE: 5}, 2), None, 0, False, "unknown"),
        (InviteState({NODE: 5}, 1), None, 0, False, "used"),
    ],
)
def test_the_state_of_an_invite_in_a_word(state, issued, wall, void, name):
    assert state_name(state, issued, wall, void=void) == name


WALL = 1_800_000_000


def stored(number, issued_at):
    return StoredInvite(InviteId(number.to_bytes(32, "big")), issued_at, b"blob")


def test_old_invites_make_room_for_new_ones(tmp_path):
    with Store.open(tmp_path / "mesh0") as store:
        for number, age in enumerate((KEPT_FOR + 1, KEPT_FOR, 0)):
            store.save_invite(stored(number, WALL - age))

        _make_room(SimpleNamespace(store=store), WALL)

        assert [invite.issued_at for invite in store.load_invites()] == [WALL - KEPT_FOR, WALL]


def test_no_more_invites_are_kept_than_can_be_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(invites, "KEPT_MAX", 3)
    with Store.open(tmp_path / "mesh0") as store:
        for number in range(3):
            _make_room(SimpleNamespace(store=store), WALL)
            store.save_invite(stored(number, WALL))

        with pytest.raises(ApiError) as refused:
            _make_room(SimpleNamespace(store=store), WALL)

    assert refused.value.code == "too-many-invites"
    assert "--reusable" in refused.value.message
