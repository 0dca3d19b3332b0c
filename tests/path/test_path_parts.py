"""The parts of the agent that stand alone: addresses, witnesses, the schedule."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.path.candidates import PathClass, control_endpoint, own_candidates, path_class, usable
from meshd.path.schedule import Schedule
from meshd.path.witnesses import OwnAddresses
from meshd.trust.record import CANDIDATES_MAX, Candidate, CandidateKind
from meshd.wg.types import Endpoint
from path.world import OVERLAY, A, B, C, D, endpoint, host


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "0.1.2.3",
        "127.0.0.1",
        "127.9.9.9",
        "169.254.1.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "100.64.1.2",
        "::",
        "::1",
        "fe80::1",
        "ff02::1",
        "::ffff:192.0.2.1",
    ],
)
def test_an_address_that_can_only_be_wrong_is_not_usable(text):
    assert not usable(endpoint(text), OVERLAY)


def test_an_address_inside_the_overlay_is_not_usable():
    inside = OVERLAY[0].network_address + 5

    assert not usable(Endpoint(inside, 51820), OVERLAY)
    assert usable(Endpoint(inside, 51820), ())


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_that_is_none_is_not_usable(port):
    assert not usable(endpoint("192.0.2.1", port), OVERLAY)


@pytest.mark.parametrize("text", ["192.0.2.1", "10.0.0.1", "192.168.1.1", "2001:db8::1", "fd00::1"])
def test_an_ordinary_address_is_usable(text):
    assert usable(endpoint(text), OVERLAY)


def test_the_classes_put_the_lan_first_and_relays_last():
    def classed(kind, text):
        return path_class(Candidate(kind, ip_address(text), 1))

    assert classed(CandidateKind.HOST, "192.168.1.1") is PathClass.LAN
    assert classed(CandidateKind.HOST, "fd12::1") is PathClass.LAN
    assert classed(CandidateKind.HOST, "203.0.113.1") is PathClass.HOST
    assert (
        PathClass.LAN
        < PathClass.HOST
        < classed(CandidateKind.CONFIGURED, "203.0.113.1")
        < classed(CandidateKind.REFLEXIVE, "203.0.113.1")
        < classed(CandidateKind.RELAYED, "203.0.113.1")
    )


def own(**options):
    defaults = {
        "hosts": (),
        "port": 51820,
        "control_port": 0,
        "configured": (),
        "reflexive": (),
        "excluded": OVERLAY,
    }
    return own_candidates(**(defaults | options))


def test_our_candidates_are_configured_ones_hosts_and_what_others_see():
    candidates = own(
        configured=[endpoint("198.51.100.9", 4500)],
        hosts=[ip_address("10.0.0.2"), ip_address("127.0.0.1"), ip_address("100.64.0.1")],
        reflexive=[endpoint("198.51.100.1", 40000)],
    )

    assert candidates == (
        Candidate(CandidateKind.CONFIGURED, ip_address("198.51.100.9"), 4500),
        host("10.0.0.2"),
        Candidate(CandidateKind.REFLEXIVE, ip_address("198.51.100.1"), 40000),
    )


def test_a_control_port_of_its_own_is_told():
    (candidate,) = own(hosts=[ip_address("10.0.0.2")], control_port=51821)

    assert candidate == host("10.0.0.2", control_port=51821)
    assert control_endpoint(candidate) == endpoint("10.0.0.2", 51821)


def test_a_mapping_of_the_control_port_alone_is_not_told():
    seen = [endpoint("198.51.100.1", 40000)]

    assert own(control_port=51821, reflexive=seen) == ()


def test_a_nat_that_keeps_the_control_port_is_taken_to_keep_both():
    (candidate,) = own(control_port=51821, reflexive=[endpoint("198.51.100.1", 51821)])

    assert candidate == Candidate(CandidateKind.REFLEXIVE, ip_address("198.51.100.1"), 51820, 51821)


def test_the_last_hosts_give_way_when_there_are_too_many():
    hosts = [ip_address(f"10.0.0.{n}") for n in range(1, 12)]
    seen = endpoint("198.51.100.1", 40000)

    candidates = own(hosts=hosts, reflexive=[seen])

    assert len(candidates) == CANDIDATES_MAX
    assert candidates[-1].address == seen.address
    assert [c.address for c in candidates[:-1]] == hosts[: CANDIDATES_MAX - 1]


# Witnesses

LOCAL = (ip_address("192.168.1.2"),)
SEEN = endpoint("198.51.100.1", 40000)
OTHER = endpoint("198.51.100.1", 40007)
AT = {key: ip_address(f"203.0.113.{number}") for number, key in enumerate((A, B, C, D), 1)}


def witnesses():
    own_addresses = OwnAddresses()
    own_addresses.local_changed(LOCAL, settles_at=0.0)
    return own_addresses


def never(version):
    return float("inf")


def always(version):
    return 0.0


def test_two_members_that_agree_are_believed():
    own_addresses = witnesses()
    own_addresses.report(A.id, SEEN, AT[A])
    assert own_addresses.review(never, 1.0)
    assert own_addresses.reflexive == ()
    own_addresses.report(B.id, SEEN, AT[B])

    assert own_addresses.review(never, 1.0)
    assert own_addresses.reflexive == (SEEN,)


def test_two_members_behind_one_address_are_one_witness():
    own_addresses = witnesses()
    own_addresses.report(A.id, SEEN, AT[A])
    own_addresses.report(B.id, SEEN, AT[A])
    own_addresses.report(C.id, OTHER, AT[C])

    own_addresses.review(always, 1.0)

    assert own_addresses.reflexive == ()
    assert own_addresses.unsteady == OTHER


def test_one_member_that_says_it_twice_is_one_witness():
    own_addresses = witnesses()
    assert own_addresses.report(A.id, SEEN, AT[A])
    assert not own_addresses.report(A.id, SEEN, AT[A])

    own_addresses.review(never, 1.0)

    assert own_addresses.reflexive == ()


def test_a_sole_witness_is_believed_once_all_others_have_had_their_chance():
    own_addresses = witnesses()
    own_addresses.report(A.id, SEEN, AT[A])

    own_addresses.review(lambda version: 3.0, 1.0)
    assert own_addresses.reflexive == ()
    assert own_addresses.due_at == 3.0

    own_addresses.review(lambda version: 3.0, 3.0)
    assert own_addresses.reflexive == (SEEN,)
    assert own_addresses.due_at is None


def test_a_sole_witness_stays_believed_when_more_members_come():
    own_addresses = witnesses()
    own_addresses.report(A.id, SEEN, AT[A])
    own_addresses.review(always, 1.0)

    own_addresses.review(never, 2.0)

    assert own_addresses.reflexive == (SEEN,)


def test_a_liar_does_not_outvote_two_honest_members():
    own_addresses = witnesses()
    own_addresses.report(A.id, SEEN, AT[A])
    own_addresses.report(C.id, endpoint("203.0.113.66"), AT[C])
    own_addresses.report(B.id, SEEN, AT[B])

    own_addresses.review(always, 1.0)

    assert own_addresses.reflexive == (SEEN,)


def test_mappings_that_differ_by_witness_are_of_no_use_but_show_a_nat():
    own_addresses = witnesses()
    own_addresses.report(A.id, SEEN, AT[A])
    own_addresses.report(B.id, OTHER, AT[B])

    own_addresses.review(always, 1.0)

    assert own_addresses.reflexive == ()
    assert own_addresses.behind_nat


def test_our_own_address_seen_by_others_is_no_nat():
    own_addresses = witnesses()
    own_addresses.report(A.id, Endpoint(LOCAL[0], 51820), AT[A])

    assert not own_addresses.review(always, 1.0)
    assert own_addresses.reflexive == ()
    assert not own_addresses.behind_nat


def test_a_changed_address_does_not_make_beliefs_flap():
    own_addresses = witnesses()
    own_addresses.report(A.id, SEEN, AT[A])
    own_addresses.report(B.id, SEEN, AT[B])
    own_addresses.review(always, 1.0)

    own_addresses.local_changed((*LOCAL, ip_address("172.17.0.1")), settles_at=12.0)
    own_addresses.report(D.id, Endpoint(LOCAL[0], 51820), AT[D])
    assert not own_addresses.review(always, 10.0)
    assert own_addresses.behind_nat
    own_addresses.report(A.id, SEEN, AT[A])
    own_addresses.report(B.id, SEEN, AT[B])

    assert not own_addresses.review(always, 12.0)
    assert own_addresses.reflexive == (SEEN,)


def test_what_nobody_confirms_any_more_is_dropped():
    own_addresses = witnesses()
    own_addresses.report(A.id, SEEN, AT[A])
    own_addresses.report(B.id, SEEN, AT[B])
    own_addresses.review(always, 1.0)

    own_addresses.local_changed([SEEN.address], settles_at=12.0)

    assert own_addresses.due_at == 12.0
    assert own_addresses.review(always, 12.0)
    assert own_addresses.reflexive == ()
    assert not own_addresses.behind_nat


def test_a_member_that_is_gone_is_no_witness():
    own_addresses = witnesses()
    own_addresses.report(A.id, SEEN, AT[A])
    own_addresses.report(B.id, SEEN, AT[B])
    own_addresses.forget(A.id)

    own_addresses.review(never, 1.0)

    assert own_addresses.reflexive == ()


# Schedule

keys = st.integers(0, 5)
instants = st.floats(0, 100)
steps = st.lists(
    st.tuples(st.sampled_from(["set", "set_sooner"]), keys, instants)
    | st.tuples(st.just("discard"), keys, st.none())
    | st.tuples(st.just("pop_due"), st.none(), instants),
    max_size=200,
)


@given(steps)
def test_the_schedule_is_a_map_whose_least_comes_first(history):
    schedule, model = Schedule(), {}
    for action, key, at in history:
        match action:
            case "set":
                schedule.set(key, at)
                model[key] = at
            case "set_sooner":
                schedule.set_sooner(key, at)
                model[key] = min(at, model.get(key, at))
            case "discard":
                schedule.discard(key)
                model.pop(key, None)
            case "pop_due":
                popped = schedule.pop_due(at)
                due = [instant for instant in model.values() if instant <= at]
                assert (popped is None) == (not due)
                if popped is not None:
                    assert model.pop(popped) == min(due)
        soonest = schedule.soonest()
        assert (None if soonest is None else soonest[0]) == min(model.values(), default=None)


def test_a_deadline_moved_for_ever_does_not_fill_the_memory():
    schedule = Schedule()
    for instant in range(10_000):
        schedule.set("peer", float(instant))

    assert len(schedule._heap) < 100
