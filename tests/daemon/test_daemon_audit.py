"""What goes into the audit log: made by real engines, kept by a real store."""

import json
from dataclasses import replace
from ipaddress import ip_network

import pytest

from engine.engine_world import World, whole
from engine.test_engine_sealing import all_follow, root_key, seal
from meshd.config import load
from meshd.daemon.audit import QUOTA_BURST, AuditLog
from meshd.daemon.disk import Disk
from meshd.keys import WireGuardPrivateKey
from meshd.store import Store
from meshd.store_audit import reading
from meshd.trust.fact import FactKind
from meshd.trust.record import sign_record
from meshd.trust.revocation import Revocation, sign_revocation

LAN = ip_network("10.9.0.0/24")


class Watched:
    """A machine whose daemon keeps an audit log on disk."""

    def __init__(self, machine, path, *, settings=()):
        self.machine = machine
        self.path = path
        self.config = load({"config": str(path / "none.toml"), **dict(settings)}, {}, "host")
        self.store = None
        self.log = None
        obey = machine._on_event

        def on_event(event):
            self.open()
            self.log.on_event(event)
            obey(event)
            if machine.disk.identity is not None and not self.log._begun:
                self.store.bind(machine.engine.identity.mesh)
                self.log.begin()

        machine._on_event = on_event

    def open(self):
        if self.log is None:
            self.store = Store.open(self.path / self.machine.name)
            self.log = AuditLog(
                self.machine.engine,
                self.store,
                Disk(),
                self.config,
                remembered=self.store.mesh is not None,
                wall=lambda: self.machine.wall,
            )

    def close(self):
        if self.store is not None:
            self.store.close()
        self.store = self.log = None

    def entries(self):
        with reading(self.path / self.machine.name / "mesh.db") as log:
            assert log.verify().fault is None
            return list(log.entries())

    def kinds(self):
        return [entry.act.kind for entry in self.entries()]

    def of(self, kind):
        return [entry.act for entry in self.entries() if entry.act.kind == kind]


@pytest.fixture
def watch(tmp_path):
    (tmp_path / "none.toml").touch()
    watched = []

    def make(machine, **options):
        watched.append(Watched(machine, tmp_path, **options))
        return watched[-1]

    yield make
    for each in watched:
        each.close()


def joined(watch):
    """Return a founder and its guest, who came by an invite, and what watches the founder."""
    world = World(seed=11)
    founder, guest = world.machine("founder"), world.machine("guest")
    log = watch(founder)
    founder.start()
    token = founder.invite(tags=("web",), routes=(LAN,))
    guest.start(token=token)
    world.run_until(lambda: whole(founder, guest), within=5.0)
    return world, founder, guest, log


def test_an_admission_says_who_signed_it_and_what_it_grants(watch):
    world, founder, guest, log = joined(watch)

    own, theirs = log.of("member-admitted")
    assert own.subject == str(founder.node)
    assert (own.signer, own.signer_name) == (str(world.mesh), "mesh key")
    assert (theirs.subject, theirs.subject_name) == (str(guest.node), "guest")
    assert (theirs.signer, theirs.signer_name) == (str(founder.node), "founder")
    assert json.loads(theirs.details)["tags"] == ["web"]
    granted = log.of("routes-granted")[-1]
    assert granted.subject == str(guest.node)
    assert json.loads(granted.details) == {"routes": [str(LAN)]}
    (used,) = log.of("invite-used")
    assert (used.subject, used.signer) == (str(guest.node), str(founder.node))
    assert log.kinds()[0] == "log-opened"


def test_a_revocation_is_told_once_with_its_signer(watch):
    world, founder, guest, log = joined(watch)
    word = Revocation(guest.node, world.mesh, cascade=True, revoked_at=int(world.wall))
    blob = sign_revocation(word, world.mesh_key, world.mesh)

    founder.learn(FactKind.REVOCATION, blob)
    founder.learn(FactKind.REVOCATION, blob)
    world.run_for(3.0)

    (act,) = log.of("member-revoked")
    assert (act.subject_name, act.signer_name) == ("guest", "mesh key")
    assert json.loads(act.details)["cascade"] is True


def test_a_new_wireguard_key_is_signed_by_its_owner(watch):
    world, founder, guest, log = joined(watch)
    record = founder.engine.ledger.standing(guest.node).record
    after = WireGuardPrivateKey(bytes([7]) * 32).public
    rotated = replace(record, sequence=record.sequence + 1, wireguard_key=after)

    founder.learn(FactKind.RECORD, sign_record(rotated, guest.disk.node_key, world.mesh))

    (act,) = log.of("wireguard-key-rotated")
    assert act.subject == act.signer == str(guest.node)
    assert json.loads(act.details) == {
        "before": str(record.wireguard_key),
        "after": str(after),
    }


def test_a_seal_and_a_new_bootstrap_key_are_told_by_who_made_them_and_by_who_follows(watch):
    world = World(seed=13)
    maker, follower = world.machine("maker"), world.machine("follower")
    logs = [watch(maker), watch(follower)]
    maker.start()
    follower.start(seeds=[maker])
    world.run_until(lambda: whole(maker, follower), within=5.0)

    seal(maker)
    world.run_until(lambda: all_follow([maker, follower], root_key(world)), within=30.0)

    for log in logs:
        (sealed,) = log.of("mesh-sealed")
        assert (sealed.subject, sealed.signer) == (str(root_key(world).id), str(world.mesh))
        assert {act.subject for act in log.of("credential-granted")} == {
            str(maker.node),
            str(follower.node),
        }
        assert log.of("bootstrap-key-rotated")
        assert log.of("credential-adopted")[0].signer == str(root_key(world).id)


def test_who_changes_all_the_time_does_not_fill_the_log(watch):
    world, founder, guest, log = joined(watch)
    record = founder.engine.ledger.standing(guest.node).record
    before = len(log.entries())

    for number in range(1, 200):
        key = WireGuardPrivateKey(number.to_bytes(32, "big")).public
        changed = replace(record, sequence=record.sequence + number, wireguard_key=key)
        founder.learn(FactKind.RECORD, sign_record(changed, guest.disk.node_key, world.mesh))

    assert len(log.entries()) - before == QUOTA_BURST + 1
    (restless,) = log.of("member-restless")
    assert restless.subject == str(guest.node)


def test_a_restart_tells_nothing_twice(watch):
    world, founder, guest, log = joined(watch)
    before = log.kinds()
    founder.kill()
    log.close()

    founder.start(seeds=[guest])
    world.run_until(lambda: whole(founder, guest), within=15.0)

    assert log.kinds() == before


def test_what_was_learnt_while_away_is_told_on_return(watch):
    world, founder, guest, log = joined(watch)
    founder.kill()
    log.close()
    word = Revocation(guest.node, world.mesh, cascade=False, revoked_at=int(world.wall))
    founder.start(seeds=[guest])

    founder.learn(FactKind.REVOCATION, sign_revocation(word, world.mesh_key, world.mesh))

    assert log.kinds()[-1] == "member-revoked"


def test_forgetting_a_member_is_our_own_act(watch):
    world, founder, guest, log = joined(watch)
    guest.power_off()

    founder.forget(guest)

    assert log.of("member-forgotten")[0].signer == str(founder.node)
    guest.start(seeds=[founder])
    world.run_until(lambda: whole(founder, guest), within=30.0)
    assert len(log.of("member-admitted")) == 3, "it was let in again"


def test_settings_that_changed_are_named_and_their_values_are_not(watch):
    world = World(seed=12)
    founder = world.machine("founder")
    log = watch(founder, settings={"name": "secretive", "token": "meshd1.x", "port": "4711"})
    founder.start()
    (first,) = log.of("configuration-changed")
    assert json.loads(first.details) == {"by": "start", "settings": ["config", "name", "port"]}

    log.log.configured(replace(log.config, port=4712), by="reload")
    log.log.configured(replace(log.config, port=4712), by="reload")

    _, second = log.of("configuration-changed")
    assert json.loads(second.details) == {"by": "reload", "settings": ["port"]}
    assert "secretive" not in first.details + second.details


def test_no_secret_gets_into_the_log(watch):
    world, founder, _guest, log = joined(watch)
    secrets = [
        world.mesh_key.seed,
        founder.disk.node_key.seed,
        founder.disk.identity.wireguard_key,
        world.bootstrap_key,
        world.secret("invite founder"),
    ]

    text = repr(log.entries())
    assert str(founder.node) in text
    for secret in map(bytes, secrets):
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
