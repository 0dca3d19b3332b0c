"""What `status` says of credentials: this node's own, the members', and what is wrong."""

from engine.engine_world import World, whole
from meshd.control import views
from meshd.control.snapshot import CredentialSnapshot
from meshd.daemon.credential import credential_findings, own_credential
from meshd.trust.grammar import WALL_MAX
from meshd.trust.renewal import GRACE

LIFE = 60


def mesh(seed):
    world = World(seed=seed)
    founder, node = world.machine("founder"), world.machine("node")
    founder.start()
    node.start(token=founder.invite(lifetime=LIFE, tags=("db",)))
    world.run_until(lambda: whole(founder, node), within=3.0)
    return world, founder, node


def findings(machine):
    return [(each.level, each.code) for each in credential_findings(machine.engine)]


def test_status_says_who_has_given_what_until_when():
    _, founder, node = mesh(1)

    own = own_credential(node.engine)

    assert (own.issuer, own.tags, own.admit) == ("founder", ("db",), False)
    assert own.expires_at - own.issued_at == LIFE
    of_founder = own_credential(founder.engine)
    assert (of_founder.issuer, of_founder.expires_at, of_founder.admit) == ("", None, True)


def test_status_is_silent_as_long_as_renewal_works():
    world, founder, node = mesh(2)
    for _ in range(20):
        world.run_for(10.0)
        assert findings(node) == findings(founder) == []


def test_status_says_what_is_wrong_from_worrying_to_too_late():
    world, founder, node = mesh(3)
    founder.power_off()
    expires_at = own_credential(node.engine).expires_at
    world.run_for(expires_at - world.wall - 5.0)
    assert findings(node) == [("warning", "credential-expiring")]

    world.run_for(10.0)
    assert findings(node) == [("error", "credential-expired")]

    node.clock_offset = GRACE
    node.engine.renewal.begin(node.now)  # as after a restart
    node.engine.handle_timer(node.now, node.wall)
    assert findings(node) == [("error", "credential-too-late")]


def document_of(credential):
    return views._credential(credential)


def test_a_date_in_any_year_can_be_shown():
    never = CredentialSnapshot(issuer="", issued_at=0.0, expires_at=None)
    late = CredentialSnapshot(issuer="a", issued_at=0.0, expires_at=float(WALL_MAX))

    assert document_of(never)["expires_at"] is None
    assert document_of(never)["issuer"] is None
    assert document_of(late)["expires_at"] == "9999-12-31T23:59:59.000Z"
