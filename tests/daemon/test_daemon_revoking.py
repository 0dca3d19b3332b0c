"""`meshctl revoke` at the daemon: whom it refuses, with which key it signs, what is on disk."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from engine.engine_world import World, whole
from meshd.control.revoking import RevokeRequest
from meshd.control.routes import ApiError
from meshd.daemon.revoking import revoke
from meshd.engine import events
from meshd.errors import StoreError
from meshd.keys import MeshKey
from meshd.store import Secret, Store
from meshd.trust.fact import FactKind


class Daemon:
    """A machine of the simulated world, with a real store, as `revoke` sees a daemon."""

    def __init__(self, machine, store):
        self.machine = machine
        self.engine = machine.engine
        self.store = store
        self.driver = self

    async def submit(self, give):
        result = give(self.machine.now, self.machine.wall)
        while (event := self.engine.next_event()) is not None:
            if isinstance(event, events.FactChanged):
                self.store.save_facts([event.fact], durable=True)
        self.machine.drain()
        return result


@pytest.fixture
def meshed(tmp_path, monkeypatch):
    """founder ── x (admit) ── y (admit), and mallory by the founder."""
    world = World(seed=1)
    founder, x, y, mallory = (world.machine(n) for n in ("founder", "x", "y", "mallory"))
    founder.start()
    x.start(token=founder.invite(key="x", admit=True))
    mallory.start(token=founder.invite(key="mallory"))
    world.run_until(lambda: whole(founder, x, mallory), within=5.0)
    y.start(token=x.invite(key="y", admit=True))
    world.run_until(lambda: whole(founder, x, y, mallory), within=5.0)
    monkeypatch.setattr("meshd.daemon.revoking.time", SimpleNamespace(time=lambda: world.wall))
    with Store.open(tmp_path / "mesh0") as store:
        yield world, lambda machine: Daemon(machine, store), (founder, x, y, mallory)


async def refused(daemon, name, **options):
    with pytest.raises(ApiError) as error:
        await revoke(daemon, RevokeRequest(name, **{"cascade": False, "sure": True, **options}))
    assert not list(daemon.store.load_facts())
    return error.value


async def test_without_sure_it_only_says_what_would_happen(meshed):
    _, on, (founder, _, y, _) = meshed

    answer = await revoke(on(founder), RevokeRequest("x", cascade=True, sure=False))

    assert (answer.done, answer.name, answer.state) == (False, "x", "alive")
    assert answer.falls == ((y.node, "y"),)
    assert founder.engine.ledger.revocation(answer.id) is None


async def test_what_is_done_is_on_disk(meshed):
    _, on, (founder, x, y, _) = meshed

    answer = await revoke(on(founder), RevokeRequest("x", cascade=False, sure=True))

    assert answer.done
    assert answer.stays == ((y.node, "y"),)
    stored = [f for f in on(founder).store.load_facts() if f.kind is FactKind.REVOCATION]
    assert stored == [f for f in founder.engine.ledger.facts() if f.kind is FactKind.REVOCATION]
    assert founder.engine.ledger.revocation(x.node).signer == founder.node


async def test_what_the_disk_refuses_is_not_reported_as_done(meshed, monkeypatch):
    _, on, (founder, *_) = meshed
    daemon = on(founder)

    def full(*_, **__):
        raise StoreError("no room")

    monkeypatch.setattr(daemon.store, "save_facts", lambda *_, **__: None)
    monkeypatch.setattr(daemon.store, "flush", full)

    with pytest.raises(StoreError, match="no room"):
        await revoke(daemon, RevokeRequest("mallory", cascade=False, sure=True))


async def test_the_mesh_key_signs_where_it_is_on_this_disk(meshed):
    world, on, (founder, *_) = meshed
    daemon = on(founder)
    daemon.store.save_secret(Secret.MESH_KEY, world.mesh_key.seed)

    answer = await revoke(daemon, RevokeRequest("mallory", cascade=False, sure=True))

    assert answer.signer == "the mesh key"


async def test_a_mesh_key_that_is_the_meshs_no_more_signs_nothing(meshed):
    _, on, (founder, *_) = meshed
    daemon = on(founder)
    daemon.store.save_secret(Secret.MESH_KEY, MeshKey(bytes(32)).seed)

    answer = await revoke(daemon, RevokeRequest("mallory", cascade=False, sure=True))

    assert answer.signer == "founder"


async def test_who_may_not_is_told_who_may(meshed):
    _, on, (_, _, _, mallory) = meshed

    error = await refused(on(mallory), "x")

    assert (error.status, error.code) == (403, "not-allowed")
    assert "ask one of: " in error.message
    assert {"founder", "x", "y"} <= set(error.message.replace(",", "").split())


@pytest.mark.parametrize(
    ("name", "options", "code", "said"),
    [
        ("y", {}, "own-name", "meshctl leave"),
        ("x", {"cascade": True}, "own-chain", "would be out as well"),
        ("malory", {}, "unknown-member", "did you mean mallory?"),
        ("mal", {}, "unknown-member", "no member is called just 'mal'"),
    ],
)
async def test_what_cannot_be_meant_is_refused(meshed, name, options, code, said):
    _, on, (_, _, y, _) = meshed

    error = await refused(on(y), name, **options)

    assert error.code == code
    assert said in error.message


async def test_once_is_enough(meshed):
    _, on, (founder, *_) = meshed
    daemon = on(founder)
    await revoke(daemon, RevokeRequest("mallory", cascade=False, sure=True))

    with pytest.raises(ApiError, match="mallory is revoked already since 2023-11-14"):
        await revoke(daemon, RevokeRequest("mallory", cascade=False, sure=True))

    answer = await revoke(daemon, RevokeRequest("mallory", cascade=True, sure=True))
    assert answer.done


async def test_in_an_open_mesh_nobody_is_thrown_out(meshed):
    world, on, (founder, *_) = meshed
    founder.engine.become(replace(founder.engine.identity, open_mesh=True), world.now)

    error = await refused(on(founder), "mallory")

    assert error.code == "open-mesh"
    assert "meshctl seal" in error.message
