"""A relay's shell: what the engine says is done, in the sockets at once and then in the kernel."""

import contextlib
import errno
import socket
import time

import pytest
import trio
import trio.testing

from meshd.daemon import relay, relay_keeper
from meshd.daemon.driver import REFUSED_DUTY_MAX
from meshd.daemon.relay import HELLOS_MAX, RelayShell
from meshd.daemon.relay_keeper import (
    BLOCKED_DATAGRAMS_MIN,
    BLOCKED_LIFETIME,
    LOOK_INTERVAL,
    RETRY_INTERVAL,
    KernelKeeper,
)
from meshd.daemon.relay_kernel import RelayKernel
from meshd.errors import DeviceError
from meshd.net import nft_monitor, relay_nft
from meshd.net.forwarder import is_free
from meshd.net.forwarding import Note, pack_note, unpack_note
from meshd.net.relay_nft import FlowCount, Observed
from meshd.relay.hello import RelayOutgoing
from meshd.relay.maps import RelayMaps
from meshd.store import Meta
from meshd.underlay import DatagramType, header
from meshd.values import PortRange
from net.namespaces import namespaces
from net.relays import MARK, PORTS, PORTS_MAX, PROMPT, end, pair, pair_of

HELLO = header(DatagramType.RELAY_HELLO) + bytes(100)
NOTE = Note(("one",), ipv6=True)


class Store:
    def __init__(self, note=None):
        self.kept = {} if note is None else {Meta.FORWARDING: pack_note(note)}

    def load_meta(self, key):
        return self.kept.get(key)

    def save_meta(self, key, value):
        self.kept[key] = value

    @property
    def note(self):
        return unpack_note(self.kept.get(Meta.FORWARDING))


class Kernel:
    """A kernel that forwards what it is given, or says why not."""

    mark = MARK

    def __init__(self, note=None, flows=frozenset()):
        self.note = note or Note()
        self.flows = flows  # as an earlier run has left them
        self.asked = []
        self.fails = False
        self.counts = {}
        self.passed = {4: 0, 6: 0}

    def plan(self, flows, interfaces):
        versions = {flow.source.address.version for flow in flows}
        return Note(
            (*self.note.ipv4, *(set(interfaces) - set(self.note.ipv4) if 4 in versions else ())),
            self.note.ipv6 or 6 in versions,
        )

    def take_note(self, note):
        self.note = note

    def reconcile(self, flows, *, look):
        self.asked.append((flows, look))
        if self.fails:
            raise DeviceError("change relayed flows", errno.EPERM)
        before, self.flows = self.flows, flows
        if not look:
            return None
        seen = {flow: self.counts.get(flow, FlowCount(0, 0)) for flow in before}
        return Observed(True, seen, dict(self.passed))

    def remove(self, *, end=False):
        self.asked.append("remove")
        self.flows, self.note = frozenset(), Note()


@pytest.fixture
def clock(autojump_clock, monkeypatch):
    """A clock that jumps, and threads that it cannot jump over."""

    async def at_once(function):
        await trio.lowlevel.checkpoint()
        return function()

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    return autojump_clock


@contextlib.asynccontextmanager
async def keeping(kernel, store=None):
    keeper = KernelKeeper(kernel, store or Store(), lambda: ("one",))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        yield keeper
        nursery.cancel_scope.cancel()


async def until(holds):
    with trio.fail_after(1000):
        while not holds():  # noqa: ASYNC110 - nobody sets an event for it
            await trio.sleep(0.01)


async def test_what_an_earlier_run_has_left_is_not_touched_before_the_engine_has_spoken(
    clock,
):
    kernel, store = Kernel(NOTE, pair_of(4)), Store(NOTE)
    async with keeping(kernel, store) as keeper:
        await trio.sleep(100)
        assert kernel.asked == []

        keeper.want(pair_of(4))
        await until(lambda: kernel.asked)

    assert kernel.asked[0] == (pair_of(4), True)
    assert store.note.ipv4 == ("one",)


async def test_what_an_earlier_run_has_left_is_cleared_if_nothing_is_wanted(clock):
    kernel, store = Kernel(NOTE, pair_of(4)), Store(NOTE)
    async with keeping(kernel, store) as keeper:
        keeper.want(frozenset())
        await trio.sleep(100)

    assert kernel.asked == ["remove"]
    assert store.note == Note()


async def test_a_node_that_never_relays_never_touches_the_kernel(clock):
    kernel = Kernel()
    async with keeping(kernel) as keeper:
        keeper.want(frozenset())
        await trio.sleep(100)

    assert kernel.asked == []


async def test_what_is_switched_on_is_on_disk_before(clock):
    kernel, store = Kernel(), Store()
    seen = []
    kernel.reconcile = lambda flows, look: seen.append(store.note)
    async with keeping(kernel, store) as keeper:
        keeper.want(pair_of(4))
        await until(lambda: seen)

    assert seen == [Note(("one",))]


async def test_flows_between_ip_versions_and_from_this_host_are_left_to_the_sockets(clock):
    own = pair(
        end("127.109.0.1", 5), end("127.0.0.1", 52000), end("10.2.0.1", 52001), end("10.2.0.2", 7)
    )
    kernel = Kernel()
    async with keeping(kernel) as keeper:
        keeper.want(pair_of(4) | pair_of(4, 6, port=52100) | own)
        await until(lambda: kernel.asked)

    assert kernel.flows == pair_of(4)


async def test_an_error_is_told_and_tried_again(clock):
    kernel = Kernel()
    kernel.fails = True
    async with keeping(kernel) as keeper:
        keeper.want(pair_of(4))
        await until(lambda: list(keeper.findings()))
        assert [finding.code for finding in keeper.findings()] == ["relay-kernel"]

        kernel.fails = False
        await trio.sleep(RETRY_INTERVAL + 1)

        assert list(keeper.findings()) == []
    assert kernel.flows == pair_of(4)


async def test_flows_that_the_host_lets_not_pass_go_back_to_the_sockets_for_a_while(clock):
    kernel = Kernel()
    wanted = pair_of(4) | pair_of(6, port=52000)
    async with keeping(kernel) as keeper:
        keeper.want(wanted)
        await until(lambda: kernel.flows == wanted)
        kernel.counts = {flow: FlowCount(BLOCKED_DATAGRAMS_MIN // 2, 0) for flow in wanted}
        kernel.passed = {4: 0, 6: BLOCKED_DATAGRAMS_MIN}
        await trio.sleep(LOOK_INTERVAL + 1)

        assert kernel.flows == pair_of(6, port=52000)
        assert [finding.code for finding in keeper.findings()] == ["relay-firewall"]

        kernel.counts = {}
        await trio.sleep(BLOCKED_LIFETIME + LOOK_INTERVAL)
        assert kernel.flows == wanted
        assert list(keeper.findings()) == []


@pytest.mark.netns
async def test_rules_that_somebody_removes_are_looked_for_at_once(monkeypatch):
    """Not after a while: the fence is among them."""
    with namespaces(1) as (namespace,):
        kernel = Kernel()
        monkeypatch.setattr(
            relay_keeper, "RulesMonitor", lambda: namespace.call(nft_monitor.RulesMonitor)
        )
        monkeypatch.setattr(relay_keeper, "LOOK_INTERVAL", 1e6)
        monkeypatch.setattr(relay_keeper, "WATCHED_FOR", 0.0)
        namespace.run("nft add table ip one")
        async with keeping(kernel) as keeper, trio.open_nursery() as nursery:
            nursery.start_soon(keeper.hear)
            keeper.want(pair_of(4))
            await until(lambda: kernel.asked)
            before = len(kernel.asked)
            await trio.to_thread.run_sync(namespace.run, "nft flush ruleset")
            await until(lambda: (pair_of(4), True) in kernel.asked[before:])
            nursery.cancel_scope.cancel()


async def test_where_nobody_may_listen_it_is_said_and_the_rest_goes_on(clock, monkeypatch, caplog):
    caplog.set_level("INFO")

    def refused():
        raise DeviceError("listen for changes of nftables", errno.EPERM)

    monkeypatch.setattr(relay_keeper, "RulesMonitor", refused)
    async with keeping(Kernel()) as keeper:
        await keeper.hear()
    assert "listen for changes" in caplog.text


async def test_what_the_kernel_has_counted_is_told_by_port_as_it_grows(clock):
    kernel = Kernel()
    (there,) = (flow for flow in pair_of(4) if flow.arrives_at.port == PORTS.first)
    async with keeping(kernel) as keeper:
        keeper.want(pair_of(4))
        await until(lambda: kernel.asked)
        for count, grown in ((10, 10), (25, 15), (3, 3)):  # it began anew before the last one
            kernel.counts = {there: FlowCount(count, count * 100)}
            kernel.passed = {4: count}
            await trio.sleep(LOOK_INTERVAL + 1)
            assert keeper.take_traffic() == {PORTS.first: FlowCount(grown, grown * 100)}

        assert keeper.take_traffic() == {}


# The sockets


class Engine:
    """Lets in hellos that end with a one."""

    def __init__(self):
        self.hellos = []
        self.traffic = []
        self.taken = set()
        self.seconds_each = 0.0

    def receive_relay_datagram(self, datagram, source, port, local, now, wall):
        self.hellos.append((datagram, source, port, local))
        time.sleep(self.seconds_each)
        return datagram.endswith(b"1")

    def relay_traffic(self, traffic, strangers, now):
        self.traffic.append((dict(traffic), strangers))

    def relay_port_taken(self, port, now, wall):
        self.taken.add(port)


def free_ports(count):
    """Some ports in a row that nobody has."""
    with contextlib.ExitStack() as opened:
        while True:
            probe = opened.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            probe.bind(("::", 0))
            first = probe.getsockname()[1]
            if first + count < 65536:
                return PortRange(first, first + count - 1)


@contextlib.asynccontextmanager
async def relaying(ports, keeper=None):
    engine = Engine()
    shell = RelayShell(engine, ports, fwmark=0, keeper=keeper)

    async def submit(give):
        await trio.lowlevel.checkpoint()
        return give(trio.current_time(), time.time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shell.run, submit)
        yield shell, engine
        nursery.cancel_scope.cancel()
    shell.close()
    shell.close()  # which does no harm


async def promptly(holds):
    with trio.fail_after(PROMPT):
        while not holds():  # noqa: ASYNC110 - nobody sets an event for it
            await trio.sleep(0.01)


async def test_a_hello_goes_to_the_engine_and_its_answer_leaves_from_the_same_port():
    ports = free_ports(2)
    async with relaying(ports) as (shell, engine):
        shell.set_ports(frozenset(ports))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member:
            member.bind(("127.0.0.2", 0))
            member.settimeout(PROMPT)
            member.sendto(HELLO, ("127.0.0.1", ports.first))
            await promptly(lambda: engine.hellos)
            (hello,) = engine.hellos
            _, source, port, local = hello
            shell.send(RelayOutgoing(b"pong", source, port, local))

            assert member.recvfrom(100) == (b"pong", ("127.0.0.1", ports.first))


async def test_after_leaving_no_port_is_open_and_the_tasks_go_on():
    ports = free_ports(2)
    async with relaying(ports) as (shell, _):
        shell.set_ports(frozenset(ports))
        await trio.testing.wait_all_tasks_blocked()
        shell.remove()
        await trio.testing.wait_all_tasks_blocked()

        assert is_free(ports.first)
        assert is_free(ports.last)


async def test_ports_for_which_there_are_no_descriptors_are_told_to_the_engine(monkeypatch):
    ports = free_ports(3)
    monkeypatch.setattr(relay, "raise_descriptor_limit", lambda _: 2)
    async with relaying(ports) as (shell, engine):
        shell.set_ports(frozenset(range(ports.first, ports.last + 1)))

        await promptly(lambda: len(engine.taken) == 1)


async def test_hellos_that_prove_nothing_leave_others_their_turn():
    ports = free_ports(2)
    async with relaying(ports) as (shell, engine):
        shell.set_ports(frozenset(ports))
        engine.seconds_each = 0.001
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for _ in range(100):
                stranger.sendto(HELLO, ("127.0.0.1", ports.first))
        began_at = trio.current_time()
        await promptly(lambda: len(engine.hellos) >= 50)

        busy = len(engine.hellos) * engine.seconds_each
        assert busy / (trio.current_time() - began_at) < REFUSED_DUTY_MAX + 0.2


async def test_hellos_that_wait_are_bounded():
    ports = free_ports(2)
    shell = RelayShell(Engine(), ports, fwmark=0, keeper=None)
    with contextlib.closing(shell):
        for _ in range(HELLOS_MAX + 5):
            shell._on_hello(HELLO, end("127.0.0.2", 1), ports.first, end("127.0.0.1", 1).address)

        assert len(shell._hellos) == HELLOS_MAX
        assert shell._hellos_lost == 5


async def test_ports_of_other_programs_are_told_to_the_engine_when_relaying_begins():
    ports = free_ports(6)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", ports.first + 1))
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as another:
            another.bind(("::1", ports.first + 4))
            async with relaying(ports) as (shell, engine):
                shell.set_ports(frozenset({ports.first, ports.first + 1}))

                expected = {ports.first + 1, ports.first + 4}
                await promptly(lambda: engine.taken == expected)


async def test_traffic_and_strangers_are_told_since_last(autojump_clock):
    ports = free_ports(2)
    a, b = end("127.0.0.2", free_ports(1).first), end("127.0.0.3", free_ports(1).first)
    async with relaying(ports) as (shell, engine):
        shell.set_ports(frozenset(ports))
        flows = pair(a, end("127.0.0.1", ports.first), end("127.0.0.1", ports.last), b)
        shell.set_maps(RelayMaps(flows))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as member:
            member.bind((str(a.address), a.port))
            member.sendto(bytes(1000), ("127.0.0.1", ports.first))
            member.sendto(bytes(1000), ("127.0.0.1", ports.last))
        await promptly(lambda: engine.traffic)
        await trio.sleep(100)

    assert engine.traffic == [({ports.first: FlowCount(1, 1000)}, 1)]


async def test_flows_without_an_address_are_a_finding():
    ports = free_ports(2)
    gone = pair(
        end("127.0.0.2", 7),
        end("192.0.2.1", ports.first),
        end("192.0.2.1", ports.last),
        end("127.0.0.3", 7),
    )
    async with relaying(ports) as (shell, _):
        shell.set_ports(frozenset(ports))
        shell.set_maps(RelayMaps(gone))

        assert [finding.code for finding in shell.findings()] == ["relay-address"]
        shell.set_maps(RelayMaps())
        assert list(shell.findings()) == []


# The kernel itself


@pytest.fixture
def alone():
    with namespaces(1) as (namespace,):
        namespace.run("ip link add one type veth peer name two; ip link set one up")
        namespace.run("ip link set two up")
        yield namespace


def reconcile(namespace, kernel, flows, *, look=False):
    kernel.take_note(namespace.call(kernel.plan, flows, ("one", "two")))
    return namespace.call(kernel.reconcile, flows, look=look)


def in_kernel(namespace):
    table = relay_nft.RelayTable("mesh0", PORTS_MAX, MARK, relay_nft.Fence(("one", "two")))
    return namespace.call(relay_nft.observe, table)


@pytest.mark.netns
def test_a_restart_touches_no_flow_that_is_still_wanted(alone):
    first, second = pair_of(4), pair_of(4, port=52000)
    before = RelayKernel("mesh0", PORTS, MARK, Note())
    reconcile(alone, before, first)
    reconcile(alone, before, first | second)
    handles = alone.run("nft --handle list ruleset")

    after = RelayKernel("mesh0", PORTS, MARK, before.note)
    observed = reconcile(alone, after, first)

    assert observed.flows.keys() == first | second
    assert in_kernel(alone).flows.keys() == first
    # Nothing was loaded anew: the table and its rules are the very same.
    rules = [line for line in handles.splitlines() if "# handle" in line]
    assert set(rules) <= set(alone.run("nft --handle list ruleset").splitlines())


@pytest.mark.netns
@pytest.mark.parametrize(
    "damage", ["nft flush ruleset", "sysctl -qw net.ipv4.conf.one.forwarding=0"]
)
def test_what_others_have_undone_is_done_again_with_the_next_look(alone, damage):
    kernel = RelayKernel("mesh0", PORTS, MARK, Note())
    reconcile(alone, kernel, pair_of(4))

    alone.run(damage)
    reconcile(alone, kernel, pair_of(4), look=True)

    assert in_kernel(alone).flows.keys() == pair_of(4)
    assert alone.run("sysctl -n net.ipv4.conf.one.forwarding").strip() == "1"


@pytest.mark.netns
def test_an_error_makes_the_next_call_look(alone):
    kernel = RelayKernel("mesh0", PORTS, MARK, Note())
    reconcile(alone, kernel, pair_of(4))
    alone.run("nft flush map ip meshd_relay_mesh0 arriving")

    with pytest.raises(DeviceError):
        reconcile(alone, kernel, frozenset())
    reconcile(alone, kernel, pair_of(4, port=52000))

    assert in_kernel(alone).flows.keys() == pair_of(4, port=52000)


@pytest.mark.netns
def test_nothing_comes_back_after_the_end(alone):
    kernel = RelayKernel("mesh0", PORTS, MARK, Note())
    reconcile(alone, kernel, pair_of(4))

    alone.call(kernel.remove, end=True)
    reconcile(alone, kernel, pair_of(4))

    assert alone.run("nft list ruleset") == ""
