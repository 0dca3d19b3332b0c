"""The last resort: TCP only where UDP does not get through, and let go of in time."""

from ipaddress import IPv4Address
from random import Random

import pytest

from meshd.carrier.frames import OWN_PORT
from meshd.carrier.resort import (
    CARRIERS_MAX,
    ROTATE_AFTER,
    SETTLED_AFTER,
    SILENT_AFTER,
    SILENT_ROUND_TRIPS,
    CarrierState,
    Door,
    LastResort,
)
from meshd.keys import NodeId
from meshd.wg.types import Endpoint

NODES = [NodeId(bytes([n]) * 32) for n in range(1, 6)]
A, B, C, *_ = NODES
HERE = IPv4Address("127.0.0.1")


def doors(number, *, tls=False):
    return (Door(Endpoint(IPv4Address(f"203.0.113.{number}"), 51820), tls),)


HOSTS = {node: doors(number) for number, node in enumerate(NODES, start=1)}


class World:
    """A last resort, and a clock."""

    def __init__(self, *hosts):
        self.now = 100.0
        self.core = LastResort(now=self.now)
        self.hosts(*hosts)

    def hosts(self, *hosts):
        self.core.hosts_changed({node: HOSTS[node] for node in hosts}, NODES, self.now)

    def reach(self, by_udp, *in_use, slowest=0.02):
        self.core.reached(by_udp=by_udp, slowest=slowest, in_use=in_use, now=self.now)

    def wait(self, seconds):
        """Let time pass, as a driver does: to each deadline."""
        until = self.now + seconds
        for _ in range(100):
            timer = self.core.get_timer()
            if timer is None or timer.at > until:
                break
            self.now = max(self.now, timer.at)
            self.core.handle_timer(self.now)
        else:
            raise AssertionError(f"never at rest: {timer}")
        self.now = until
        self.core.handle_timer(self.now)

    @property
    def doors(self):
        return [each.doors for each in self.core.wanted]

    def come_up(self, *, up=True):
        """Let all that is wanted come up, or go down."""
        self.core.observed(
            {
                each.number: CarrierState(
                    up=up,
                    endpoints={
                        port: Endpoint(HERE, 40_000 + 100 * each.number + i)
                        for i, port in enumerate(each.ports)
                    },
                )
                for each in self.core.wanted
            }
        )


def test_nothing_is_connected_while_udp_works():
    world = World(A, B)
    world.reach(by_udp=True)

    world.wait(1000)

    assert world.core.wanted == ()


def test_nothing_is_connected_where_nobody_has_tcp_ports():
    world = World()

    assert world.core.get_timer() is None
    world.wait(1000)

    assert world.core.wanted == ()


def test_two_hosts_are_connected_when_none_answers_by_udp_for_a_while():
    world = World(*NODES)
    world.wait(SILENT_AFTER - 0.1)
    assert world.core.wanted == ()

    world.wait(0.2)

    assert len(world.core.wanted) == CARRIERS_MAX
    assert all(each.ports == (OWN_PORT,) for each in world.core.wanted)


def test_where_answers_were_slow_silence_has_to_last_longer():
    world = World(*NODES)
    world.reach(True, slowest=3.0)
    world.reach(False, slowest=3.0)
    world.wait(SILENT_ROUND_TRIPS * 3.0 - 0.1)
    assert world.core.wanted == ()

    world.wait(0.2)

    assert len(world.core.wanted) == CARRIERS_MAX


def test_a_host_that_is_new_has_its_time_to_answer():
    world = World()
    world.wait(60.0)
    world.hosts(A)
    world.wait(SILENT_AFTER - 0.1)

    assert world.core.wanted == ()


def test_all_begin_with_the_same_hosts_in_whatever_order_they_were_heard_of():
    for order in (NODES, NODES[::-1], [C, A, B]):
        world = World(*order)
        world.wait(SILENT_AFTER)

        assert set(world.doors) == {HOSTS[A], HOSTS[B]}


def test_one_that_does_not_come_up_makes_room_for_the_next():
    world = World(A, B, C)
    world.wait(SILENT_AFTER)
    tried = set(world.doors)

    world.wait(ROTATE_AFTER + 1)

    assert len(world.doors) == CARRIERS_MAX
    assert tried | set(world.doors) == {HOSTS[A], HOSTS[B], HOSTS[C]}


def test_one_that_is_the_only_one_is_tried_on():
    world = World(A)
    world.wait(SILENT_AFTER + 100 * ROTATE_AFTER)

    assert [each.number for each in world.core.wanted] == [1]


def test_a_host_that_is_up_stays_and_its_ports_have_endpoints():
    world = World(A)
    world.wait(SILENT_AFTER)
    world.come_up()
    world.core.use_ports(A, {51900, 51902})
    world.come_up()
    world.wait(1000)

    assert world.core.wanted[0].ports == (OWN_PORT, 51900, 51902)
    assert world.core.endpoint(A) == Endpoint(HERE, 40_100)
    assert world.core.endpoint(A, 51902) == Endpoint(HERE, 40_102)
    assert world.core.endpoint(A, 51904) is None
    assert world.core.hosts_up == {A}


def test_what_is_down_has_no_endpoint_to_use_but_stands_for_its_host_still():
    world = World(A)
    world.wait(SILENT_AFTER)
    world.come_up()
    world.come_up(up=False)

    assert world.core.endpoint(A) is None
    assert list(world.core.endpoints.values()) == [A]


def test_all_is_let_go_of_when_udp_has_worked_for_a_while():
    world = World(A, B)
    world.wait(SILENT_AFTER)
    world.come_up()
    world.reach(by_udp=True)

    world.wait(SETTLED_AFTER - 0.1)
    assert len(world.core.wanted) == CARRIERS_MAX
    world.wait(0.2)

    assert world.core.wanted == ()
    assert world.core.get_timer() is None


def test_udp_that_works_for_a_moment_changes_nothing():
    world = World(A, B)
    world.wait(SILENT_AFTER)
    world.come_up()
    before = world.core.wanted
    for _ in range(20):
        world.reach(by_udp=True)
        world.wait(SETTLED_AFTER / 2)
        world.reach(by_udp=False)
        world.wait(SETTLED_AFTER / 2)

    assert world.core.wanted == before


def test_what_carries_a_path_in_use_is_kept():
    world = World(A)
    world.wait(SILENT_AFTER)
    world.come_up()
    used = world.core.endpoint(A)
    world.reach(True, used)
    world.wait(1000)
    assert world.core.endpoint(A) == used

    world.come_up(up=False)
    world.hosts()
    world.wait(1000)
    assert [each.number for each in world.core.wanted] == [1]

    world.reach(True)
    world.wait(0)
    assert world.core.wanted == ()


def test_a_host_that_says_other_doors_is_tried_there_first_by_the_same_endpoint():
    world = World(A)
    world.wait(SILENT_AFTER)
    world.come_up()
    before = world.core.wanted[0]

    world.core.hosts_changed({A: doors(77)}, NODES, world.now)

    assert world.core.wanted[0].number == before.number
    assert world.core.wanted[0].doors == (*doors(77), *before.doors)


def test_one_that_is_no_member_any_more_is_left_whatever_it_carries():
    world = World(A)
    world.wait(SILENT_AFTER)
    world.come_up()
    world.reach(False, world.core.endpoint(A))

    world.core.hosts_changed({}, [B, C], world.now)

    assert world.core.wanted == ()


def test_seeds_are_asked_only_while_they_are_to_be():
    world = World()
    world.core.seeds_changed({"tcp://a:1": doors(9), "nobody": ()}, world.now)
    world.come_up()
    assert world.doors == [doors(9)]
    assert world.core.endpoint("tcp://a:1") is not None

    world.core.seeds_changed({}, world.now)

    assert world.core.wanted == ()


def test_a_seed_that_lets_us_in_becomes_the_host_that_it_is():
    world = World()
    world.core.seeds_changed({"tcp://a:1": doors(9)}, world.now)
    world.come_up()
    number, endpoint = world.core.wanted[0].number, world.core.endpoint("tcp://a:1")

    world.core.joined(A, endpoint)
    world.core.seeds_changed({}, world.now)
    world.hosts(A)
    world.wait(1000)

    assert [each.number for each in world.core.wanted] == [number]
    assert world.core.endpoint(A) == endpoint


@pytest.mark.parametrize("seed", range(50))
def test_whatever_happens_it_comes_to_rest_and_to_the_right_end(seed):
    rng = Random(seed)
    world = World()
    for _ in range(60):
        match rng.randrange(6):
            case 0:
                world.hosts(*rng.sample(NODES, rng.randrange(len(NODES) + 1)))
            case 1:
                world.reach(rng.random() < 0.5, *rng.sample(sorted(world.core.endpoints), 0))
            case 2:
                world.come_up(up=rng.random() < 0.7)
            case 3:
                found = {f"s{n}": doors(n) for n in range(rng.randrange(8))}
                world.core.seeds_changed(found, world.now)
            case 4 if world.core.endpoints:
                endpoint = rng.choice(list(world.core.endpoints))
                world.core.joined(rng.choice(NODES), endpoint)
            case _:
                world.wait(rng.random() * 20)
        assert len(world.core.wanted) <= 16
        numbers = [each.number for each in world.core.wanted]
        assert len(set(numbers)) == len(numbers)
    world.core.seeds_changed({}, world.now)
    world.hosts(A, B)
    world.reach(False)
    world.wait(3 * ROTATE_AFTER)
    world.come_up()
    world.wait(3 * ROTATE_AFTER)
    assert world.core.hosts_up

    world.reach(True)
    world.wait(2 * SETTLED_AFTER)
    assert world.core.wanted == ()
