"""`meshctl seal` and new keys of the mesh at the daemon: who may, and what is on disk."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from engine.engine_world import World, whole
from meshd import config
from meshd.control.routes import ApiError
from meshd.daemon import sealing, startup
from meshd.daemon.roots import held_mesh_key, load_roots, root_findings
from meshd.engine import events
from meshd.errors import StoreError
from meshd.keys import BootstrapKey, MeshKey
from meshd.store import Secret, Store
from meshd.trust.epoch import NUMBER_BY_MEMBERS_MAX, BootstrapEpoch, sign_epoch
from meshd.trust.fact import FactKind
from meshd.trust.revocation import Revocation, sign_revocation
from meshd.trust.roots import Roots
from meshd.trust.secret import derive
from meshd.trust.succession import Succession, open_succession_untrusted, sign_succession

PASSPHRASE = b"correct horse battery"
NEW_ROOT = MeshKey(b"N" * 32)


class Daemon:
    """A machine of the simulated world, with a real store, as `sealing` sees a daemon."""

    is_member = True

    def __init__(self, machine, store, secret=None):
        self.machine = machine
        self.engine = machine.engine
        self.store = store
        self.driver = self
        self.config = SimpleNamespace(secret=secret)

    async def submit(self, give):
        result = give(self.machine.now, self.machine.wall)
        while (event := self.engine.next_event()) is not None:
            if isinstance(event, events.FactChanged):
                self.store.save_facts([event.fact])
            elif isinstance(event, events.Admitted):
                startup.update(self.store, event.identity)
        self.machine.drain()
        return result


@pytest.fixture
def meshed(tmp_path, monkeypatch):
    """Three that know a passphrase."""
    world = World(seed=1)
    world.mesh_key, world.bootstrap_key = derive(PASSPHRASE)
    world.mesh = world.mesh_key.id
    machines = [world.machine(name) for name in "abc"]
    for machine in machines:
        machine.start(seeds=() if machine is machines[0] else machines[:1])
        machine.engine.identity = replace(machine.engine.identity, open_mesh=True)
    world.run_until(lambda: whole(*machines), within=5.0)
    clock = SimpleNamespace(time=lambda: world.wall)
    monkeypatch.setattr("meshd.daemon.sealing.time", clock)
    monkeypatch.setattr("meshd.daemon.invites.time", clock)
    with Store.open(tmp_path / "mesh0") as store:
        store.bind(world.mesh)
        yield world, store, machines


async def refused(call, code):
    with pytest.raises(ApiError) as error:
        await call
    assert error.value.code == code
    return str(error.value)


async def test_without_sure_it_only_says_who_would_be_taken_along(meshed):
    world, store, (a, _, c) = meshed
    c.kill()
    world.run_until(lambda: a.state_of(c).name != "ALIVE", within=30.0)

    answer = await sealing.seal(Daemon(a, store, PASSPHRASE), None, sure=False)

    assert not answer.done
    assert [name for _, name, _ in answer.members] == ["a", "b", "c"]
    assert answer.members[2][2] != "alive"
    assert not a.engine.ledger.roots.number
    assert store.load_secret(Secret.MESH_KEY) is None


async def test_when_a_seal_is_done_key_line_and_grants_are_on_disk(meshed):
    world, store, (a, b, c) = meshed
    daemon = Daemon(a, store, PASSPHRASE)

    answer = await sealing.seal(daemon, None, sure=True)

    assert answer.done
    assert len(answer.members) == 3
    key = held_mesh_key(store, a.engine.identity)
    assert key.id == answer.root == a.engine.ledger.roots.newest
    kinds = [fact.kind for fact in store.load_facts()]
    assert kinds.count(FactKind.GRANT) == 3
    assert kinds.count(FactKind.SUCCESSION) == 1
    kept = load_roots(store, replace(a.engine.identity, pinned=None, older_bootstrap_key=None))
    assert kept.roots == a.engine.ledger.roots
    assert kept.older_bootstrap_key == world.bootstrap_key
    world.run_until(lambda: b.engine.ledger.roots.newest == answer.root, within=5.0)
    world.run_until(lambda: c.engine.epochs.lacking is None, within=5.0)
    assert not b.engine.identity.open_mesh
    await refused(sealing.seal(daemon, None, sure=True), "not-open")


async def test_nothing_is_sealed_that_the_disk_does_not_take(meshed, monkeypatch):
    _, store, (a, *_) = meshed

    def full(*_, **__):
        raise StoreError("no room")

    monkeypatch.setattr(store, "save_facts_with", full)
    with pytest.raises(StoreError, match="no room"):
        await sealing.seal(Daemon(a, store, PASSPHRASE), None, sure=True)

    assert not a.engine.ledger.roots.number
    assert store.load_secret(Secret.MESH_KEY) is None, "all of it or nothing"
    assert store.load_facts() == []


async def test_the_secret_is_asked_for_and_compared(meshed):
    _, store, (a, *_) = meshed
    daemon = Daemon(a, store)

    assert "--secret-file" in await refused(sealing.seal(daemon, None, sure=True), "bad-request")
    await refused(sealing.seal(daemon, "short", sure=True), "bad-request")
    await refused(sealing.seal(daemon, "another passphrase", sure=True), "wrong-secret")
    assert (await sealing.seal(daemon, PASSPHRASE.decode() + "\n", sure=True)).done


async def test_a_mesh_without_a_secret_is_not_sealed(meshed):
    _, store, (a, *_) = meshed
    a.engine.identity = replace(a.engine.identity, open_mesh=False)

    await refused(sealing.seal(Daemon(a, store, PASSPHRASE), None, sure=True), "not-open")


async def test_only_who_holds_the_mesh_key_rotates_it(meshed, tmp_path):
    world, store, (a, b, _) = meshed
    await sealing.seal(Daemon(a, store, PASSPHRASE), None, sure=True)
    world.run_until(lambda: b.engine.ledger.roots.number == 1, within=5.0)
    with Store.open(tmp_path / "other") as other:
        other.save_secret(Secret.MESH_KEY, MeshKey(bytes(32)).seed)
        await refused(
            sealing.rotate_mesh_key(Daemon(b, other), 3600, None, sure=True), "not-allowed"
        )
    before = store.load_secret(Secret.MESH_KEY)

    plan = await sealing.rotate_mesh_key(Daemon(a, store), 3600, None, sure=False)
    answer = await sealing.rotate_mesh_key(Daemon(a, store), 3600, None, sure=True)

    assert (plan.done, answer.done) == (False, True)
    assert answer.overlap_until == int(world.wall) + 3600
    assert store.load_secret(Secret.MESH_KEY) != before
    assert held_mesh_key(store, a.engine.identity).id == answer.root
    world.run_until(lambda: b.engine.ledger.roots.newest == answer.root, within=5.0)


async def test_a_mesh_key_that_was_taken_offline_is_of_use_from_its_file_alone(meshed):
    world, store, (a, b, _) = meshed
    await sealing.seal(Daemon(a, store, PASSPHRASE), None, sure=True)
    world.run_until(lambda: b.engine.ledger.roots.number == 1, within=5.0)
    root, text = sealing.export_mesh_key(Daemon(a, store))
    with pytest.raises(ApiError, match="nothing was deleted"):
        sealing.forget_mesh_key(Daemon(a, store), "another")

    sealing.forget_mesh_key(Daemon(a, store), str(root))

    assert store.load_secret(Secret.MESH_KEY) is None
    with pytest.raises(ApiError, match="does not hold"):
        sealing.export_mesh_key(Daemon(a, store))
    await refused(sealing.rotate_mesh_key(Daemon(a, store), 60, None, sure=True), "not-allowed")
    for wrong in ("nonsense", text[:-4], "A" * 43 + "="):
        with pytest.raises(ApiError):
            await sealing.rotate_mesh_key(Daemon(a, store), 60, wrong, sure=True)
    answer = await sealing.rotate_mesh_key(Daemon(a, store), 60, f"{text}\n", sure=True)
    assert held_mesh_key(store, a.engine.identity).id == answer.root


async def test_who_may_admit_changes_the_bootstrap_key(meshed):
    world, store, (a, b, c) = meshed
    guest = world.machine("guest")
    guest.start(token=a.invite())
    world.run_until(lambda: whole(a, b, c, guest), within=5.0)
    await refused(sealing.rotate_bootstrap_key(Daemon(guest, store), sure=True), "not-allowed")
    c.kill()
    world.run_until(lambda: b.state_of(c).name != "ALIVE", within=30.0)

    answer = await sealing.rotate_bootstrap_key(Daemon(b, store), sure=True)

    assert answer.done
    assert answer.away == ("c",)
    world.run_until(
        lambda: guest.engine.identity.bootstrap_key == b.engine.identity.bootstrap_key, within=5.0
    )
    assert store.load_secret(Secret.BOOTSTRAP_KEY) == bytes(b.engine.identity.bootstrap_key)
    assert store.load_secret(Secret.OLDER_BOOTSTRAP_KEY) == bytes(world.bootstrap_key)


async def test_a_bootstrap_key_that_nobody_has_is_waited_for_only_while_its_maker_is_a_member(
    meshed,
):
    """A bad member has begun the last epoch that a member can begin, and has no key to show."""
    world, store, (a, b, bad) = meshed
    await sealing.seal(Daemon(a, store, PASSPHRASE), None, sure=True)
    world.run_until(lambda: not b.engine.identity.open_mesh, within=5.0)
    world.run_until(
        lambda: bad.engine.own_chain[0].issuer == a.engine.ledger.roots.newest, within=5.0
    )
    identity = bad.engine.identity
    epoch = BootstrapEpoch(
        NUMBER_BY_MEMBERS_MAX, bytes(32), bad.node, int(world.wall), identity.chain
    )
    blob = sign_epoch(epoch, identity.node_key, world.mesh)
    bad.learn(FactKind.BOOTSTRAP_EPOCH, blob)
    world.run_until(lambda: b.engine.ledger.epoch == epoch, within=5.0)
    other = store.path.parents[1] / "mesh1"
    with Store.open(other) as empty:
        empty.bind(world.mesh)
        no_number = await refused(
            sealing.rotate_bootstrap_key(Daemon(b, empty), sure=True), "not-allowed"
        )
    assert "where the mesh key is" in no_number
    missing = await refused(
        sealing.rotate_bootstrap_key(Daemon(a, store), sure=True), "bootstrap-key-missing"
    )
    assert f"revoke {a.engine.name_of(bad.node)} first" in missing

    mesh_key = held_mesh_key(store, a.engine.identity)
    statement = Revocation(bad.node, mesh_key.id, False, int(world.wall))
    a.learn(FactKind.REVOCATION, sign_revocation(statement, mesh_key, world.mesh))
    answer = await sealing.rotate_bootstrap_key(Daemon(a, store), sure=True)

    assert answer.done
    world.run_until(
        lambda: b.engine.identity.bootstrap_key == a.engine.identity.bootstrap_key, within=5.0
    )


async def test_what_is_wrong_with_roots_is_found(meshed):
    world, store, (a, b, _) = meshed
    assert list(root_findings(a.engine)) == []
    await sealing.seal(Daemon(a, store, PASSPHRASE), None, sure=True)
    world.run_until(
        lambda: b.engine.ledger.roots.settled and b.engine.ledger.roots.number, within=5
    )
    # The key is fetched once its epoch is known: it may come after all grants.
    world.run_until(
        lambda: b.engine.identity.bootstrap_key == a.engine.identity.bootstrap_key, within=5.0
    )
    assert list(root_findings(b.engine)) == []

    b.engine.ledger.rivals, b.engine.ledger.rival = 3, b.engine.ledger.roots.last_step
    (finding,) = root_findings(b.engine)

    assert finding.code == "rival-succession"
    assert "3 times" in finding.message


def test_a_restart_with_the_old_secret_is_the_same_node_of_the_sealed_mesh(tmp_path):
    given = config.load({}, {"MESHD_SECRET": PASSPHRASE.decode()}, "host")
    old_key, old_bootstrap_key = derive(PASSPHRASE)
    roots = Roots.first(old_key.id)
    succession = Succession(1, old_key.id, NEW_ROOT.id, dated=1, grants=1)
    blob = sign_succession(succession, old_key, NEW_ROOT, old_key.id)
    with Store.open(tmp_path / "mesh0") as store:
        first = startup.begin(given, store, 0.0)
        startup.remember(store, first, first.identity)
        sealed = replace(
            first.identity,
            pinned=roots.grown(open_succession_untrusted(blob, old_key.id)).settle(),
            open_mesh=False,
            bootstrap_key=BootstrapKey(bytes(32)),
            older_bootstrap_key=old_bootstrap_key,
        )
        startup.update(store, sealed)

        again = startup.begin(given, store, 1.0)

    assert again.identity.roots == sealed.roots
    assert not again.identity.open_mesh
    assert again.identity.bootstrap_key == BootstrapKey(bytes(32))
    assert again.identity.older_bootstrap_key == old_bootstrap_key
    assert again.mesh_key is None
    assert any("the secret is of no use any more" in r for r in startup.remarks(given, again))
