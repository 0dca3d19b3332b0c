"""Members that say whatever they please, in any order, against a model of what must be believed."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gossip.harness import (
    ALIVE,
    DEAD,
    LEFT,
    SUSPECT,
    Bench,
    accuse,
    alive,
    key,
    left,
    record,
)
from meshd.gossip.claim import ACCUSERS_MAX
from meshd.gossip.events import BadPacketReceived, MemberStateChanged
from meshd.gossip.index import Index, belief_digest
from meshd.gossip.member import belief_version
from meshd.gossip.timers import TimerKind
from meshd.gossip.wire import CLAIM_ITEM, Item, MessageType
from meshd.keys import NodeId
from meshd.trust.fact import FactKind

NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)
incarnations = st.integers(1, 4)


class Rumours(RuleBasedStateMachine):
    """The node never lets anyone but a member itself say what its incarnation is."""

    def __init__(self):
        super().__init__()
        self.bench = Bench(*NAMES)
        self.own = dict.fromkeys(NAMES, (-1, ALIVE))  # the greatest own word delivered
        self.shown = dict.fromkeys(NAMES, DEAD)
        self.incarnation = 1

    def deliver(self, source, item=None, type_=MessageType.GOSSIP, *, incarnation=1):
        self.bench.receive(
            source, type_, items=[] if item is None else [item], incarnation=incarnation
        )

    def says(self, subject, incarnation, state):
        self.own[subject] = max(self.own[subject], (incarnation, state))

    @rule(source=names, subject=names, incarnation=incarnations)
    def somebody_relays_that_a_member_is_alive(self, source, subject, incarnation):
        self.says(subject, incarnation, ALIVE)
        self.deliver(source, alive(subject, incarnation))

    @rule(source=names, subject=names, incarnation=incarnations)
    def somebody_relays_that_a_member_has_left(self, source, subject, incarnation):
        self.says(subject, incarnation, LEFT)
        self.deliver(source, left(subject, incarnation))

    @rule(source=names, subject=names, accuser=names, incarnation=incarnations)
    def somebody_relays_an_accusation(self, source, subject, accuser, incarnation):
        if subject != accuser:
            self.deliver(source, accuse(subject, incarnation, by=accuser))

    @rule(name=names)
    def the_kernel_says_that_nobody_listens_there(self, name):
        self.bench.do("unreachable", key(name).id, self.bench.now)

    @rule(name=names)
    def the_kernel_says_that_the_tunnel_carries(self, name):
        self.bench.do("carried", key(name).id, self.bench.now)

    @rule(source=names)
    def somebody_asks_over_tcp(self, source):
        assert self.bench.ask_over_stream(source, sequence=7).sequence == 7

    @rule(source=names, sequence=st.integers(0, 2**32 - 1))
    def somebody_answers_what_was_never_asked(self, source, sequence):
        self.bench.receive(source, MessageType.ACK, sequence=sequence)

    @rule(seconds=st.sampled_from([0.2, 1.0, 10.0]))
    def we_are_stopped(self, seconds):
        self.bench.stop(seconds)
        self.bench.resume()

    @rule(source=names, accuser=names, incarnation=incarnations)
    def somebody_accuses_us(self, source, accuser, incarnation):
        if incarnation == self.incarnation:
            self.incarnation += 1
        self.deliver(source, accuse("me", incarnation, by=accuser))

    @rule(source=names)
    def somebody_pings(self, source):
        self.deliver(source, type_=MessageType.PING)

    @rule(seconds=st.sampled_from([0.05, 0.5, 1.0, 5.0, 30.0]))
    def time_passes(self, seconds):
        self.bench.advance(seconds)

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def time_passes_and_everybody_answers(self, seconds):
        self.bench.run_with(seconds, *NAMES)

    @rule(name=names)
    def a_path_is_ready(self, name):
        self.bench.do("contact", key(name).id, self.bench.now)

    @rule(name=names)
    def a_member_is_forgotten_and_learnt_again(self, name):
        self.bench.ledger.forget(key(name).id)
        self.bench.do("forget", key(name).id, self.bench.now)
        source = next(other for other in NAMES if other != name)
        self.deliver(source, Item(FactKind.RECORD, record(name)))
        self.own[name] = (-1, ALIVE)
        self.shown[name] = DEAD

    @invariant()
    def only_a_members_own_word_sets_its_incarnation(self):
        for name in NAMES:
            incarnation, state = self.own[name]
            view = self.bench.view(name)
            assert view.incarnation == incarnation
            assert (view.state is LEFT) == (state is LEFT)
            assert len(view.accusers) <= ACCUSERS_MAX

    @invariant()
    def only_an_accusation_of_what_we_are_raises_ours(self):
        assert self.bench.node.incarnation == self.incarnation

    @invariant()
    def whom_we_show_alive_we_have_heard(self):
        for name in NAMES:
            view = self.bench.view(name)
            assert view.heard or view.state in {DEAD, LEFT}

    @invariant()
    def the_events_tell_what_is_shown(self):
        by_node = {key(name).id: name for name in NAMES}
        for event in self.bench.events:
            if isinstance(event, MemberStateChanged):
                self.shown[by_node[event.node]] = event.after
            assert not isinstance(event, BadPacketReceived)
        self.bench.events.clear()
        assert {name: self.bench.state(name) for name in NAMES} == self.shown

    @invariant()
    def the_digest_is_that_of_what_is_held(self):
        rebuilt = Index()
        for fact in self.bench.ledger.facts():
            rebuilt.put(fact.kind, fact.key, fact.version, fact.digest)
        me = key("me").id
        version = belief_version(self.incarnation, ALIVE)
        rebuilt.put(CLAIM_ITEM, me, version, belief_digest(me, version))
        for member in self.bench.node._membership:
            if member.belief is not None:
                digest = belief_digest(NodeId(member.node), member.version)
                rebuilt.put(CLAIM_ITEM, member.node, member.version, digest)
        assert rebuilt.buckets() == self.bench.node._index.buckets()

    @invariant()
    def nothing_grows_without_bound(self):
        prober = self.bench.node._prober
        assert len(prober._probes) <= len(NAMES)
        assert len(prober._watched) <= len(NAMES)
        assert len(prober._order._round) <= 2 * len(NAMES)
        assert self.bench.node.statistics().timers_set < 40

    @invariant()
    def whom_we_show_suspect_has_a_deadline(self):
        for name in NAMES:
            if self.bench.state(name) is SUSPECT:
                assert self.bench.deadline(TimerKind.SUSPICION, name) is not None

    @invariant()
    def there_is_always_a_deadline(self):
        assert self.bench.node.get_timer().at < self.bench.now + 60.0


TestRumours = Rumours.TestCase
TestRumours.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
