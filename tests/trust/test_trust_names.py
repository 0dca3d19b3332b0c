from hypothesis import given
from hypothesis import strategies as st

from meshd.keys import NodeId
from meshd.trust.grammar import is_name
from meshd.trust.names import Named, Names

NODES = [NodeId(bytes([number]) * 32) for number in range(12)]


def called(node, name, admitted_at=0):
    return Named(admitted_at, NODES[node], name)


named = st.lists(
    st.builds(
        called,
        st.integers(0, len(NODES) - 1),
        st.sampled_from(["web", "web-2", "web-3", "db", "a" * 63, "a" * 62, "-".join("a" * 32)]),
        st.integers(0, 2),
    ),
    unique_by=lambda member: member.node,
)


@given(named, st.randoms())
def test_names_do_not_depend_on_order(members, random):
    shuffled = members.copy()
    random.shuffle(shuffled)
    first, second = Names(members), Names(shuffled)

    assert first.shown == second.shown
    assert first.owners == second.owners


@given(named)
def test_every_member_has_a_name_of_its_own_and_it_is_a_valid_one(members):
    shown = Names(members).shown

    assert shown.keys() == {member.node for member in members}
    assert len(set(shown.values())) == len(members)
    assert all(is_name(name) for name in shown.values())


@given(named)
def test_whoever_owns_a_name_is_shown_under_it(members):
    names = Names(members)

    assert names.owners.keys() == {member.name for member in members}
    assert all(names.shown[owner] == name for name, owner in names.owners.items())


def test_a_name_belongs_to_the_earlier_admitted():
    names = Names([called(1, "web", 20), called(2, "web", 10), called(3, "web", 30)])

    assert names.owners == {"web": NODES[2]}
    assert names.shown == {NODES[2]: "web", NODES[1]: "web-2", NODES[3]: "web-3"}


def test_among_equals_the_lower_id_has_the_name():
    assert Names([called(2, "web"), called(1, "web")]).owners == {"web": NODES[1]}


def test_a_number_that_somebody_is_called_by_is_left_to_it():
    names = Names([called(1, "web"), called(2, "web"), called(3, "web-2", 99)])

    assert names.shown == {NODES[1]: "web", NODES[2]: "web-3", NODES[3]: "web-2"}


def test_a_long_name_makes_room_for_its_number():
    assert Names([called(1, "a" * 63), called(2, "a" * 63)]).shown[NODES[2]] == "a" * 57 + "-2"
