"""A running node: what is opened in which order, which tasks there are, and how it ends.

    state ─▶ identity ─▶ host: see `host` ─▶ addresses ─▶ ready ─▶ let in
      │         │          │                     │          │
      └─────────┴──────────┴─────────────────────┴──────────┴── whatever ends it here is undone

| task       | does                                                                          |
| ---------- | ----------------------------------------------------------------------------- |
| driver     | owns the engine: datagrams and timers in, datagrams and events out            |
| reconciler | the only one that writes to the kernel: plan, diff, apply                      |
| network    | hears of changed addresses, links and default routes, and tells the engine     |
| ports      | has the router's port lead to ours, and tells the engine of it                 |
| relay      | forwards for others, keeps that in the kernel, and gives hellos to the engine  |
| resolver   | looks up the names of seeds                                                    |
| carriers   | carry datagrams over TCP, for others and for this node                         |
| disk       | writes again what the disk has refused                                         |
| mlkem      | imports what pre-shared keys are agreed by, when that is first wanted          |
| health     | logs what `status` finds wrong, once                                           |
| control    | answers meshctl                                                                |
| signals    | SIGTERM and SIGINT: end with 0, leaving interface, sessions and rules in place |

Ending, in whatever way, never touches the data plane of a member, except by `meshctl leave`.  A
node that has never been let in has none: what this run has made goes with it.
"""

from __future__ import annotations

import errno
import logging
import random
import signal
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from meshd import __version__, logs
from meshd.addresses import overlay_prefix
from meshd.collector import tune_collector
from meshd.control.api import make_routes
from meshd.control.events import EventHub
from meshd.control.server import serve
from meshd.control.snapshot import EventRecord
from meshd.daemon import asking, health, mlkem, rekeying, rotation, startup
from meshd.daemon.audit import AuditLog
from meshd.daemon.carrier import Carriers, carrier_ports
from meshd.daemon.controller import DaemonController
from meshd.daemon.disk import Disk
from meshd.daemon.driver import Driver
from meshd.daemon.host import FWMARK, Host
from meshd.daemon.milestones import Milestones
from meshd.daemon.names import SeedResolver, look_up
from meshd.daemon.network import NetworkWatch
from meshd.daemon.portmap import PortMapping
from meshd.daemon.reconciler import Reconciler
from meshd.daemon.relay import make_relay
from meshd.engine import events
from meshd.engine.config import EngineConfig
from meshd.engine.engine import Engine
from meshd.errors import DeviceError, StartError, StoreError, UsageError
from meshd.net.local import host_candidates
from meshd.preshared.agreements import PresharedConfig
from meshd.sdnotify import Notifier
from meshd.state_directory import given_node_key
from meshd.store import Counter as Reserved
from meshd.store import Store
from meshd.trust.fact import DECISIVE, FactKind
from meshd.wg.backend import require_privilege
from meshd.wg.types import Endpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from meshd.codec import IPAddress
    from meshd.config import Config
    from meshd.daemon.startup import Start
    from meshd.engine.events import Event
    from meshd.engine.identity import Identity
    from meshd.wg.types import DeviceStatus

log = logging.getLogger(__name__)

# What an operator sees of it in the log; everything is in `meshctl events`.
_LEVELS = {
    "path-changed": logging.DEBUG,
    "psk-agreed": logging.DEBUG,
    "psk-lost": logging.WARNING,
    "member-suspect": logging.INFO,
    "member-dead": logging.WARNING,
    "path-fault": logging.WARNING,
    "no-answer": logging.WARNING,
    "credential-expiring": logging.WARNING,
    "credential-expired": logging.ERROR,
    "credential-too-late": logging.ERROR,
    "identity-cloned": logging.ERROR,
    "member-revoked": logging.WARNING,
    "revoked": logging.ERROR,
    "reinstated": logging.WARNING,
    "address-changed": logging.WARNING,
    "address-taken-over": logging.WARNING,
    "name-taken-over": logging.WARNING,
    "record-evicted": logging.WARNING,
    "rival-succession": logging.ERROR,
    "repaired": logging.WARNING,
    "clock": logging.WARNING,
    "name-taken": logging.WARNING,
    "invite-lost": logging.WARNING,
    "no-ipv4": logging.WARNING,
    "ipv4-prefix": logging.WARNING,
    "key-conflict": logging.ERROR,
    "key-kept": logging.WARNING,
    "node-key-kept": logging.WARNING,
    "succeeded": logging.ERROR,
}


def run_daemon(config: Config) -> int:
    """Run a node until it is told to end, and return the exit status."""
    milestones = Milestones()
    milestones.reach("import")
    tune_collector()
    return trio.run(_run, config, milestones)


async def _run(config: Config, milestones: Milestones) -> int:
    require_privilege(config.interface)
    hub = EventHub()
    # Signals wait from here on, so that none can end us between two steps.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        while await _live(config, milestones, signals, hub):
            milestones = Milestones()  # under another node id, and else as after any start
    return 0


async def _live(
    config: Config, milestones: Milestones, signals: AsyncIterator[int], hub: EventHub
) -> bool:
    """Run from what is on disk to the end.  Return whether to begin anew, as another node."""
    with _opened(config) as store, ExitStack() as opened:
        if asking.is_due(config, store):
            approved = await asking.ask(config, store, signals)
            if approved is None:
                return False
            config = approved
        start = startup.begin(config, store, time.time())
        for remark in startup.remarks(config, start):
            log.warning("%s", remark)
        host = Host(config, start, opened)
        milestones.reach("interface")
        configured = await _configured(config)
        daemon = Daemon(config, store, start, host, milestones, configured, hub)
        try:
            await daemon.run(signals)
        finally:
            if daemon.is_member:
                opened.pop_all()  # the data plane outlives the daemon, however that ends
                host.let_go()
            elif daemon.may_be_known:
                # A seed may have honoured our token though its answer is still on the way: the key
                # that it was honoured for must not be lost.
                store.keep()
    return daemon.goes_on


@contextmanager
def _opened(config: Config) -> Iterator[Store]:
    """Open the store, and say what to do where the disk does not even take the first writes."""
    try:
        given = given_node_key(config.inputs.environment)
        with Store.open(config.state_path, given) as store:
            yield store
    except StoreError as error:
        raise StartError(f"{error}; make room there, or choose another --state-dir") from error


async def _configured(config: Config) -> tuple[Endpoint, ...]:
    """Look up the addresses the operator has given; a name may have several."""
    found = await look_up(str(given) for given in config.endpoints)
    for name, endpoints in found.items():
        if not endpoints:
            log.warning("--endpoint %s has no address, so nobody is told of it", name)
    return tuple(endpoint for endpoints in found.values() for endpoint in endpoints)


class Daemon:
    """See the module docstring."""

    def __init__(
        self,
        config: Config,
        store: Store,
        start: Start,
        host: Host,
        milestones: Milestones,
        configured: tuple[Endpoint, ...],
        hub: EventHub,
    ) -> None:
        self.config = config
        self.store = store
        self.host = host
        self.milestones = milestones
        self.hub = hub
        self.goes_on = False  # as another node, when this one ends
        self.answers: dict[int, trio.MemorySendChannel[float]] = {}
        self.departed = trio.Event()
        self.ready = False
        self._start = start
        self.remembered = start.remembered
        self._configured = configured
        self.disk = Disk()
        self.kem_wanted = trio.Event()
        self._refusal: StartError | None = None
        self._nursery: trio.Nursery | None = None
        self._notifier = Notifier.from_environment()
        self._started_at = time.monotonic()
        self.engine = self._make_engine()
        self.audit = AuditLog(self.engine, store, self.disk, config, remembered=start.remembered)
        self.reconciler = Reconciler(
            config.interface,
            backend=config.backend,
            device=host.device,
            links=host.links,
            mux=host.mux,
            desired=self.engine.desired_state,
            observed=self._on_observed,
            repaired=self._on_repaired,
            link_replaced=host.rebind,
        )
        self.relay = make_relay(self)
        self.driver = Driver(
            self.engine,
            host.underlay,
            host.overlay,
            host.streams,
            on_event=self._on_event,
            on_plan=self.reconciler.wake,
            look=self.reconciler.look,
            send_relayed=self.relay.send,
            on_resumed=self._on_resumed,
        )
        self.port_mapping = self._make_port_mapping()
        self.carriers = Carriers(self, host.own_port, fwmark=FWMARK)
        self.resolver = SeedResolver(
            lambda found: self.driver.submit(partial(self.engine.seeds_resolved, found))
        )

    # Life

    async def run(self, signals: AsyncIterator[int]) -> None:
        """Run until a signal or `stop`.  Raise StartError if the mesh refuses this node."""
        try:
            await self._begin()
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for task in (
                    self.driver.run,
                    self.reconciler.run,
                    NetworkWatch(self).run,
                    self.resolver.run,
                    partial(self.relay.run, self.driver.submit),
                    self.carriers.run,
                    self.disk.run,
                    partial(mlkem.provide, self),
                    partial(health.watch, self),
                    partial(self._obey_signals, signals),
                    self._feed_watchdog,
                    partial(serve, self.host.control, make_routes(DaemonController(self))),
                ):
                    nursery.start_soon(task)
                if self.port_mapping is not None:
                    nursery.start_soon(self.port_mapping.run)
                self._announce()
        finally:
            if not self.goes_on:
                self._notifier.stopping()
            self._notifier.close()
            self.relay.close()
            self.host.device = self.reconciler.device
        if self._refusal is not None:
            raise self._refusal

    def go_on(self) -> None:
        """End this run, and begin anew with what is on disk by now."""
        self.goes_on = True
        self.stop()

    def stop(self) -> None:
        """End the daemon with exit status 0."""
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()

    def _make_port_mapping(self) -> PortMapping | None:
        """Return what asks the router for our port; None where it is of no use, or unwanted."""
        if not self.config.port_mapping or self.host.control_port:
            return None
        return PortMapping(
            self.engine.identity.node_key,
            port=self.config.port,
            fwmark=FWMARK,
            excluded=self.engine.presence.networks,
            tell=lambda endpoint: self.driver.submit(partial(self.engine.port_mapped, endpoint)),
        )

    def _make_engine(self) -> Engine:
        config = self.config
        tcp, tls = carrier_ports(config)
        return Engine(
            self._start.identity,
            config=EngineConfig(
                listen_port=config.port,
                control_port=self.host.control_port,
                fwmark=FWMARK,
                configured=self._configured,
                advertise=config.advertise,
                relay=config.relay,
                relay_ports=config.relay_ports,
                tcp=tcp,
                tls=tls,
                wanted_ipv4=config.address,
                seeds=self._start.seeds,
                version=__version__,
                rotate_keys_after=config.rotate_keys_after,
                preshared=PresharedConfig(enabled=config.psk),
            ),
            memory=self._start.memory,
            rng=random.SystemRandom(),
            now=trio.current_time(),
            wall=time.time(),
        )

    async def _begin(self) -> None:
        """Set up the interface once, so that what the kernel refuses is an error at start."""
        self.engine.local_changed(self.local_addresses(), trio.current_time(), time.time())
        try:
            await self.reconciler.reconcile()
        except DeviceError as error:
            hint = ""
            if error.errno == errno.EEXIST:
                hint = "; another interface has that network: see `ip route`, choose another one"
            raise StartError(
                f"cannot set up interface {self.config.interface}: {error}{hint}"
            ) from error
        if self.engine.identity.chain:
            self._remember(self.engine.identity)
        self.ready = True

    def _announce(self) -> None:
        identity = self.engine.identity
        log.info(
            "%s is up on %s as %s" if identity.chain else "%s, on %s as %s, asks to be let in",
            identity.name,
            self.config.interface,
            identity.ipv6,
            extra=logs.fields(
                node=identity.node.short, mesh=identity.mesh.short, backend=self.host.device.backend
            ),
        )
        if self.config.init and not self._start.remembered:
            log.info("a new mesh; `meshctl invite` prints a token that lets one more node in")
        elif self.config.secret is not None and not self.config.seeds:
            for line in self._joining_lines():
                log.info("others join with: %s", line)
        if self.host.mux is None:
            log.warning("%s", health.second_port(self).message)
        self._notifier.ready(f"{identity.name} is up on {self.config.interface}")

    def _joining_lines(self) -> Iterator[str]:
        for endpoint in self.seed_endpoints()[:1]:
            yield f"meshd --secret-file FILE --seed {endpoint}"

    def seed_endpoints(self) -> tuple[Endpoint, ...]:
        """Return where others can ask this node to be let in, best first."""
        port = self.host.control_port or self.config.port
        reflexive = self.engine.path.reflexive
        host = [Endpoint(address, port) for address in self.local_addresses()]
        public = [endpoint for endpoint in host if endpoint.address.is_global]
        mapped = None if self.port_mapping is None else self.port_mapping.view().endpoint
        forwarded = [] if mapped is None else [mapped]
        return tuple(dict.fromkeys((*self._configured, *forwarded, *public, *reflexive, *host)))

    # Events

    def _on_event(self, event: Event) -> None:
        if self.goes_on:
            return  # the disk is another node's by now
        self.audit.on_event(event)
        match event:
            case events.Notice():
                self.tell(event)
            case events.FactChanged(fact):
                if self.remembered:
                    durable = fact.kind in DECISIVE
                    self.disk.keep("facts", lambda: self.store.save_facts([fact], durable=durable))
            case events.RecordForgotten(node):
                self.disk.keep("facts", lambda: self.store.delete_fact(FactKind.RECORD, node))
            case events.Admitted(identity):
                self._on_admitted(identity)
            case events.IncarnationRaised(incarnation):
                self.disk.keep(
                    "incarnation",
                    lambda: self.store.reserve_sequence(Reserved.INCARNATION, 1, above=incarnation),
                )
            case events.SequenceOutrun(sequence):
                starts = sequence >> startup.SEQUENCE_SHIFT
                self.disk.keep(
                    "starts", lambda: self.store.reserve_sequence(Reserved.STARTS, 1, above=starts)
                )
            case events.SaveKeys(keys):
                rotation.keep_keys(self, keys)
            case events.SwitchNode():
                rekeying.switch(self, event)
            case events.HurryDevice():
                self.reconciler.hurry()
            case events.RenewPeer(key):
                self.reconciler.renew(key)
            case events.EndRest():
                self.reconciler.end_rest()
            case events.ResolveSeeds(seeds):
                self.resolver.want(seeds)
            case events.RelayPortsChanged(ports):
                self.relay.set_ports(ports)
                self.carriers.relay_ports = ports
                self.carriers.relay_ports = ports
            case events.RelayMapsChanged(maps):
                self.relay.set_maps(maps)
            case events.CarriersChanged():
                self.carriers.wake()
            case events.RefusedByMesh(text, seed, final):
                self._on_refused(text, seed, final=final)
            case events.KeyringChanged(node, ring):
                if self.remembered:
                    self.disk.keep("preshared", lambda: self.store.save_keyring(node, ring))
            case events.AllocationChanged(pair, allocation):
                self.disk.keep("relay", lambda: self.store.save_allocation(pair, allocation))
            case events.KemWanted():
                self.kem_wanted.set()
            case events.PingAnswered(_, sequence, rtt):
                channel = self.answers.pop(sequence, None)
                if channel is not None:
                    channel.send_nowait(rtt)
            case events.Departed():
                self.departed.set()

    def tell(self, notice: events.Notice) -> None:
        """Log what has happened, and publish it."""
        if notice.event == "mesh-joined":
            self.milestones.reach("bootstrap")
        elif notice.event == "member-alive":
            self.milestones.reach("handshake")
            self._check_gossip()
        log.log(
            _LEVELS.get(notice.event, logging.INFO),
            "%s%s",
            f"{notice.name}: " if notice.name is not None else "",
            notice.message,
            extra=logs.fields(event=notice.event, **notice.details),
        )
        self.hub.publish(
            EventRecord(
                at=time.time(),
                event=notice.event,
                member=notice.name,
                message=notice.message,
                details=notice.details,
            )
        )

    def _check_gossip(self) -> None:
        """Note the moment at which all members known have been heard."""
        if "handshake" in self.milestones.phases and all(
            view.heard for view in self.engine.gossip.members()
        ):
            self.milestones.reach("gossip")

    def _on_admitted(self, identity: Identity) -> None:
        if self.remembered:
            self.disk.keep("identity", lambda: startup.update(self.store, identity))
        else:
            self._remember(identity)

    def _remember(self, identity: Identity) -> None:
        if not self.remembered:
            try:
                startup.remember(self.store, self._start, identity)
            except StoreError as error:
                # Members know us from here on; without our keys on disk a restart would be lost.
                raise StartError(
                    f"{error}, and so this node could not be kept; make room there, and start "
                    "again in the same way"
                ) from error
            self.remembered = True
            keys = self.engine.rotation.keys
            self.disk.keep("keys", lambda: rotation.save_keys(self.store, keys))
            self.audit.begin()
            self.disk.keep("facts", lambda: self.store.save_facts(self.engine.ledger.facts()))

    def _on_refused(self, text: str, seed: str, *, final: bool) -> None:
        if final and not self.remembered:
            self._refusal = StartError(f"{seed} does not let this node in: {text}")
            self.stop()
        else:
            log.error("%s does not let this node in: %s", seed, text)

    def _on_observed(self, device: DeviceStatus) -> None:
        if device.peers:
            self.milestones.reach("apply")
        # Between two inputs: the reconciler runs in the same thread as the driver, and neither
        # waits for anything while it has the engine.
        self.engine.device_observed(device, trio.current_time(), time.time())
        self.driver.drain()

    def _on_repaired(self, kind: str, message: str) -> None:
        self.tell(events.Notice("repaired", f"{message}; made anew", details={"what": kind}))

    def _on_resumed(self, slept: float) -> None:
        self.tell(
            events.Notice("resumed", f"this machine slept for {slept:.0f} s; looking for all anew")
        )
        self.reconciler.resync()
        if self.port_mapping is not None and self._nursery is not None:
            self._nursery.start_soon(self.port_mapping.resumed)

    # Tasks

    def local_addresses(self) -> tuple[IPAddress, ...]:
        """Return the host's underlay addresses, best first."""
        return host_candidates(
            self.host.links.host_addresses(fwmark=FWMARK),
            interface=self.config.interface,
            excluded=(
                overlay_prefix(self.engine.identity.mesh),
                self.engine.identity.ipv4_prefix,
            ),
        )

    async def _obey_signals(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                self._reload()
                continue
            if self.is_member:
                log.info("ending; the tunnels stay up")
            else:
                log.info("ending, and taking %s down: no mesh let it in", self.config.interface)
            self.stop()
            return

    def _reload(self) -> None:
        try:
            changed = self.config.reload()
        except UsageError as error:
            log.error("the new configuration is refused whole: %s", error)
            return
        logs.configure(changed.log_level, changed.log_format)
        self.audit.configured(changed, by="reload")
        log.info("configuration read again; what changed besides logging takes a restart")

    async def _feed_watchdog(self) -> None:
        interval = self._notifier.watchdog_interval
        if interval is None:
            return
        while True:
            self._notifier.watchdog()
            await trio.sleep(interval)

    # What the controller asks

    def expect(self, sequence: int, channel: trio.MemorySendChannel[float]) -> int:
        """Have the answer to a ping sent into a channel.  Return its sequence."""
        self.answers[sequence] = channel
        return sequence

    def leave_host(self) -> None:
        """Take the data plane down: this node has left the mesh."""
        # First of all: without the rules our own port would show on the underlay.
        self.driver.stop()
        self.reconciler.stop()
        self.relay.remove()
        self.host.device = self.reconciler.device
        self.host.remove()
        log.info("left the mesh; keys and state stay")

    @property
    def is_member(self) -> bool:
        """Whether the node is on disk as a member, with a data plane that outlives the daemon."""
        return self.ready and self.remembered

    @property
    def may_be_known(self) -> bool:
        """Whether a seed may have let this node in that does not know of it yet."""
        return self.ready and self._refusal is None

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started_at
