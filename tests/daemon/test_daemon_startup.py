"""From configuration and disk to an identity."""

from dataclasses import replace

import pytest

from meshd import config
from meshd.daemon import startup
from meshd.errors import StartError, UsageError
from meshd.keys import MeshKey
from meshd.store import Store
from meshd.trust.invite import format_token
from trust.world import MESH, WALL, A, chain_to, founding_chain, invite_blob, token

SECRET = {"MESHD_SECRET": "correct horse battery"}


def loaded(flags=None, environment=None):
    return config.load(flags or {}, environment or {}, "host")


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "mesh0") as opened:
        yield opened


def test_a_first_start_without_a_way_in_names_the_three():
    with pytest.raises(UsageError, match=r"(?s)--init.*--token-file.*--secret-file"):
        startup.begin(loaded(), _Nothing(), 0.0)


class _Nothing:
    mesh = None


def test_what_was_remembered_comes_back_without_any_option(store):
    first = startup.begin(loaded(environment=SECRET), store, 1000.0)
    startup.remember(store, first, first.identity)

    again = startup.begin(loaded(), store, 2000.0)

    assert again.identity.node == first.identity.node
    assert again.identity.chain == first.identity.chain
    assert again.identity.wireguard_key == first.identity.wireguard_key
    assert again.identity.bootstrap_key == first.identity.bootstrap_key
    assert again.memory.sequence > first.memory.sequence
    assert again.memory.incarnation > first.memory.incarnation


def test_seeds_are_kept_for_later_starts_until_others_are_given(store):
    first = startup.begin(loaded({"seeds": ["a:1", "b:2"]}, SECRET), store, 0.0)
    startup.remember(store, first, first.identity)

    assert startup.begin(loaded(), store, 0.0).seeds == ("a:1", "b:2")
    assert startup.begin(loaded({"seeds": ["c:3"]}), store, 0.0).seeds == ("c:3",)
    assert startup.begin(loaded(), store, 0.0).seeds == ("c:3",)


def test_the_secret_of_another_mesh_is_refused(store):
    first = startup.begin(loaded(environment=SECRET), store, 0.0)
    startup.remember(store, first, first.identity)

    with pytest.raises(StartError, match="holds the state of mesh"):
        startup.begin(loaded(environment={"MESHD_SECRET": "another passphrase"}), store, 0.0)


def joined(store, token):
    """Join by a token, as far as the state is concerned: the mesh has said yes."""
    first = startup.begin(loaded(environment={"MESHD_TOKEN": format_token(token)}), store, WALL)
    assert first.identity.token is not None
    chain = chain_to(store.node_key, by=A, through=founding_chain(A), name="host")
    startup.remember(store, first, replace(first.identity, chain=chain, token=None))
    return chain


def test_a_token_of_the_same_mesh_comes_with_the_same_node_and_is_not_kept(store):
    chain = joined(store, token())
    other = token(seeds=("192.0.2.9:51820",))

    again = startup.begin(loaded(environment={"MESHD_TOKEN": format_token(other)}), store, WALL)

    assert again.remembered
    assert again.identity.node == store.node_key.id
    assert again.identity.chain == chain
    assert again.identity.token == other
    assert startup.begin(loaded(), store, WALL).identity.token is None
    startup.update(store, again.identity)
    assert startup.begin(loaded(), store, WALL).identity.token is None


def test_the_chain_it_came_in_by_is_kept_beside_the_one_it_has(store):
    origin = joined(store, token())
    identity = startup.begin(loaded(), store, WALL).identity
    assert identity.origin == ()

    renewed = chain_to(store.node_key, by=A, through=founding_chain(A), name="host", relay=True)
    startup.update(store, replace(identity, chain=renewed, origin=origin))

    again = startup.begin(loaded(), store, WALL).identity
    assert (again.chain, again.origin) == (renewed, origin)


def test_a_token_of_another_mesh_is_refused_and_changes_nothing(store):
    chain = joined(store, token())
    key = MeshKey(b"O" * 32)
    foreign = token(mesh=key.id, invite=invite_blob(A, mesh=key.id))

    with pytest.raises(StartError, match=f"state of mesh {MESH.short}, not of {key.id.short}"):
        startup.begin(loaded(environment={"MESHD_TOKEN": format_token(foreign)}), store, WALL)

    assert startup.begin(loaded(), store, WALL).identity.chain == chain


def test_a_garbled_token_is_refused_even_where_none_is_needed(store):
    joined(store, token())

    with pytest.raises(UsageError, match="garbled"):
        startup.begin(loaded(environment={"MESHD_TOKEN": format_token(token())[:-5]}), store, WALL)


def test_two_runs_from_one_backup_do_not_begin_at_one_number(store):
    begun = {startup._first_sequence(7) for _ in range(50)}

    assert len(begun) == 50
    assert all(7 << 20 <= number < 8 << 20 for number in begun)


@pytest.mark.parametrize("flags", [{"mdns": True}, {"advertise": ["10.0.0.0/8"]}])
def test_an_option_that_is_yet_to_work_is_remarked_on(store, flags):
    chosen = loaded(flags, SECRET)

    (remark,) = startup.remarks(chosen, startup.begin(chosen, store, 0.0))

    assert f"--{next(iter(flags))} has no effect yet" in remark
