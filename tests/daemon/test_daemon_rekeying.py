"""A new node key at the daemon: what is on disk whenever it ends, and what it refuses."""

import base64
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from engine.engine_world import World, whole
from meshd import audit, store_audit
from meshd.control.rekeying import node_key_document
from meshd.control.routes import ApiError
from meshd.daemon import invites, rekeying, startup
from meshd.engine import events
from meshd.engine.rekeying import SPREAD_TIME
from meshd.errors import StartError, StoreError
from meshd.keys import MeshId, NodeKey
from meshd.store import Meta, Secret, Store
from meshd.trust.fact import FactKind

MESH = MeshId(b"m" * 32)
NEXT = NodeKey(b"n" * 32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mesh0"


def begun(path):
    """Make a state, and return its node id."""
    with Store.open(path) as store:
        store.bind(MESH)
        store.save_acts(audit.Act(1, "log-opened"))
        store.flush(durable=True)
        return store.node_key.id


def stage(path):
    with Store.open(path) as store:
        store.save_secret(Secret.NEXT_NODE_KEY, NEXT.seed)


def switch(store):
    with store.together():
        store.succeed(NEXT.id)
        store.save_meta(Meta.CHAIN, b"the new chain")


def node_key_on_disk(path):
    return NodeKey(base64.b64decode((path / "node.key").read_bytes())).id


def check_log(path):
    with store_audit.reading(path / "mesh.db") as log:
        verdict = log.verify()
    assert verdict.fault is None


# What a crash leaves


def test_a_key_that_is_only_prepared_changes_nothing(path):
    former = begun(path)
    stage(path)

    with Store.open(path) as store:
        assert store.node_key.id == former == node_key_on_disk(path)
        assert store.load_secret(Secret.NEXT_NODE_KEY) == NEXT.seed


def test_a_switch_that_is_on_disk_is_finished_by_the_next_start(path):
    former = begun(path)
    stage(path)
    with Store.open(path) as store:
        switch(store)
        assert store.node_key.id == former == node_key_on_disk(path)  # and here it is killed

    for _ in range(2):
        with Store.open(path) as store:
            assert store.node_key.id == NEXT.id == node_key_on_disk(path)
            assert store.load_meta(Meta.CHAIN) == b"the new chain"
            assert store.load_secret(Secret.NEXT_NODE_KEY) is None
    check_log(path)
    assert NEXT.seed not in (path / "mesh.db").read_bytes()


def test_a_switch_that_breaks_off_leaves_the_former_node(path):
    former = begun(path)
    stage(path)
    with Store.open(path) as store:

        def breaks_off():
            with store.together():
                store.succeed(NEXT.id)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            breaks_off()

    with Store.open(path) as store:
        assert store.node_key.id == former
        assert store.load_meta(Meta.NODE) == former


def test_a_key_file_that_cannot_be_written_loses_neither_key(path):
    begun(path)
    stage(path)
    with Store.open(path) as store:
        switch(store)
    obstacle = path / "node.key.partial"
    (obstacle / "in the way").mkdir(parents=True)
    before = (path / "node.key").read_bytes()

    with pytest.raises(StartError, match=r"node\.key: cannot be written"):
        Store.open(path)

    assert (path / "node.key").read_bytes() == before
    shutil.rmtree(obstacle)
    with Store.open(path) as store:
        assert store.node_key.id == NEXT.id


def test_a_key_may_be_replaced_again_and_the_log_goes_on(path):
    begun(path)
    stage(path)
    with Store.open(path) as store:
        switch(store)
    another = NodeKey(b"o" * 32)
    with Store.open(path) as store:
        store.save_acts(audit.Act(2, "node-key-rotated"))
        store.save_secret(Secret.NEXT_NODE_KEY, another.seed)
        with store.together():
            store.succeed(another.id)

    with Store.open(path) as store:
        assert store.node_key.id == another.id
    check_log(path)


# What the daemon does


class Daemon:
    """A machine of the simulated world, with a real store, as `rekeying` sees a daemon."""

    is_member = True

    def __init__(self, machine, store):
        self.machine, self.engine, self.store, self.driver = machine, machine.engine, store, self
        self.audit = SimpleNamespace(note=lambda *_, **__: None)
        self.told, self.gone_on = [], False
        machine._switch_node = self._switch

    async def submit(self, give):
        give(self.machine.now, self.machine.wall)
        self.machine.drain()

    def _switch(self, identity, record):
        rekeying.switch(self, events.SwitchNode(identity, record))

    def tell(self, notice):
        self.told.append(notice.event)

    def go_on(self):
        self.gone_on = True


@pytest.fixture
def daemon(path, monkeypatch):
    world = World(seed=1)
    founder, x = world.machine("founder"), world.machine("x")
    founder.start()
    with Store.open(path) as store:
        x.disk.node_key = store.node_key
        x.start(token=founder.invite())
        world.run_until(lambda: whole(founder, x), within=5.0)
        store.bind(world.mesh)
        startup.update(store, x.engine.identity)
        monkeypatch.setattr(invites, "own", lambda _: ())
        yield Daemon(x, store)


async def test_it_goes_on_with_what_it_has_put_on_disk(daemon, path):
    world, former = daemon.machine.world, daemon.engine.identity.node

    shown = await rekeying.rotate_node_key(daemon, sure=True)
    assert (shown.node, shown.phase) == (former, "asking")
    prepared = NodeKey(daemon.store.load_secret(Secret.NEXT_NODE_KEY))
    world.run_until(lambda: daemon.gone_on, within=SPREAD_TIME + 3.0)

    copy = shutil.copytree(path, path.with_name("as it is when the power goes"))
    with Store.open(copy) as store:
        assert store.node_key.id == prepared.id == node_key_on_disk(copy)
        kept = {(fact.kind, fact.key) for fact in store.load_facts()}
    assert (FactKind.RECORD, bytes(prepared.id)) in kept
    assert daemon.told == ["node-key-rotated"]


async def test_without_being_sure_it_only_says_who_it_is(daemon):
    shown = node_key_document(await rekeying.rotate_node_key(daemon, sure=False))

    assert shown["node"] == str(daemon.engine.identity.node)
    assert (shown["phase"], shown["trouble"]) == (None, None)
    assert daemon.store.load_secret(Secret.NEXT_NODE_KEY) is None


async def test_asked_again_it_goes_on_with_the_key_that_it_has_prepared(daemon):
    daemon.store.save_secret(Secret.NEXT_NODE_KEY, NEXT.seed)

    await rekeying.rotate_node_key(daemon, sure=True)
    daemon.machine.world.run_until(lambda: daemon.gone_on, within=SPREAD_TIME + 3.0)

    assert daemon.store.load_meta(Meta.NODE) == NEXT.id


async def test_a_disk_that_refuses_the_switch_leaves_it_who_it_is(daemon, monkeypatch):
    former = daemon.engine.identity.node

    def refuse(*_):
        raise StoreError("the disk is full")

    monkeypatch.setattr(startup, "update", refuse)
    await rekeying.rotate_node_key(daemon, sure=True)
    daemon.machine.world.run_for(SPREAD_TIME + 3.0)

    assert not daemon.gone_on
    assert daemon.store.load_meta(Meta.NODE) == former
    assert daemon.engine.rekeying.trouble == "the disk is full"


async def test_a_given_key_is_not_replaced_and_the_way_is_named(daemon):
    daemon.store = SimpleNamespace(locks=True)

    with pytest.raises(ApiError, match=r"systemd.*revoke this node"):
        await rekeying.rotate_node_key(daemon, sure=True)


async def test_what_stands_in_the_way_is_said_at_once(daemon):
    daemon.engine.identity = replace(daemon.engine.identity, chain=())

    with pytest.raises(ApiError, match="no member at present"):
        await rekeying.rotate_node_key(daemon, sure=True)
    assert daemon.store.load_secret(Secret.NEXT_NODE_KEY) is None
