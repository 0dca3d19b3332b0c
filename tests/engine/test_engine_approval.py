"""Approval mode in a whole engine: from a stranger's first datagram to a member."""

from ipaddress import ip_address
from random import Random

from engine.engine_world import PORT, World, all_ping, whole
from meshd.bootstrap.approval import Reply, ReplyVerdict
from meshd.bootstrap.approval_newcomer import Approved, Newcomer
from meshd.engine.config import EngineConfig, Memory
from meshd.engine.engine import Engine
from meshd.keys import NodeKey
from meshd.trust.invite import decode_token_untrusted, encode_token
from meshd.wg.types import Endpoint

STRANGER_AT = Endpoint(ip_address("192.0.2.200"), 40000)


class Stranger:
    """A newcomer and the wire between it and one member."""

    def __init__(self, world, member, *, name="web", seed=7):
        self.world, self.member = world, member
        self.key = NodeKey(world.secret(f"stranger {seed}"))
        self.at = Endpoint(member.addresses[0], PORT)
        self.core = Newcomer(self.key.id, name, rng=Random(seed), now=world.now)
        self.core.seeds_resolved([self.at], world.now)

    def step(self):
        """Send what is due, and take in what comes back."""
        world, engine = self.world, self.member.engine
        self.core.handle_timer(world.now)
        for out in self.core.datagrams_to_send():
            engine.underlay_datagram(out.datagram, STRANGER_AT, None, world.now, world.wall)
            for answer in engine.underlay_datagrams():
                if answer.target == STRANGER_AT:
                    self.core.receive_datagram(answer.datagram, self.at, world.now)
        self.member.drain()

    def steps(self, count=4):
        for _ in range(count):
            self.step()
            self.world.run_for(1.0)

    def events(self):
        events = []
        while (event := self.core.next_event()) is not None:
            events.append(event)
        return events


def founded(seed):
    world = World(seed=seed)
    founder = world.machine("founder")
    founder.start()
    world.run_for(0.1)
    return world, founder


def test_a_stranger_gets_no_answer_while_no_window_is_open():
    world, founder = founded(1)
    stranger = Stranger(world, founder)

    stranger.steps()

    assert stranger.core.listed is None
    assert founder.of("approval-wanted") == []
    assert founder.engine.bad_packets["approval asked for, and no window is open"] >= 2


def test_whoever_is_approved_becomes_a_member_by_the_token_it_gets():
    world, founder = founded(2)
    founder.engine.approval.open(600.0, world.now, world.wall)
    stranger = Stranger(world, founder)
    stranger.steps()

    (pending,) = founder.engine.approval.pending()
    assert stranger.core.listed.code == pending.code
    (notice,) = founder.of("approval-wanted")
    assert notice.name == "web"
    assert pending.code not in notice.message

    token = founder.invite(name="web")
    reply = Reply(ReplyVerdict.APPROVED, encode_token(token))
    assert founder.engine.approval.decide(pending.code, reply, world.now, world.wall)
    stranger.steps(2)

    approved = stranger.events()[-1]
    assert isinstance(approved, Approved)
    machine = world.machine("named-otherwise", node_key=stranger.key)
    machine.start(token=decode_token_untrusted(approved.token))
    world.run_until(lambda: whole(founder, machine), within=2.0)
    assert founder.engine.name_of(machine.node) == "web"
    assert all_ping(founder, machine)


def test_a_window_is_gone_after_a_restart():
    world, founder = founded(3)
    founder.engine.approval.open(600.0, world.now, world.wall)
    stranger = Stranger(world, founder)
    stranger.steps()
    assert stranger.core.listed is not None

    founder.kill()
    founder.start()
    world.run_for(0.1)
    stranger.steps(20)

    assert founder.engine.approval.until is None
    assert founder.engine.approval.pending() == ()
    assert stranger.core.listed is None


def test_answers_to_no_question_are_counted():
    world, founder = founded(4)
    for kind in (7, 9):
        founder.engine.underlay_datagram(
            b"mesh" + bytes([kind]) + bytes(80), STRANGER_AT, None, world.now, world.wall
        )
    assert founder.engine.bad_packets["approval answer to no question of ours"] == 2


def test_an_engine_that_is_in_no_mesh_yet_lets_nobody_ask():
    """A window can be opened by nobody there; hellos are dropped as everywhere."""
    world, founder = founded(5)
    late = world.machine("late")
    identity = late._first_identity(founder.invite(), founder.engine.identity.ipv4_prefix)
    late.engine = Engine(
        identity,
        config=EngineConfig(listen_port=PORT),
        memory=Memory(),
        rng=Random(5),
        now=world.now,
        wall=world.wall,
    )
    stranger = Stranger(world, late)
    stranger.core.handle_timer(world.now)
    (hello,) = stranger.core.datagrams_to_send()

    late.engine.underlay_datagram(hello.datagram, STRANGER_AT, None, world.now, world.wall)

    assert [o for o in late.engine.underlay_datagrams() if o.target == STRANGER_AT] == []
