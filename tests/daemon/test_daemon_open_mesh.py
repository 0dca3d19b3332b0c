"""Whether a node knows that whoever has a secret can sign as its mesh."""

from dataclasses import replace

import pytest

from meshd import config
from meshd.daemon import startup
from meshd.store import Meta, Store
from meshd.trust.invite import format_token, parse_token_untrusted
from trust.world import token

SECRET = {"MESHD_SECRET": "correct horse battery"}


def begun(store, flags=None, environment=None):
    return startup.begin(config.load(flags or {}, environment or {}, "host"), store, 1000.0)


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "mesh0") as opened:
        yield opened


def test_a_mesh_of_a_secret_is_open_also_after_a_restart_without_it(store):
    first = begun(store, environment=SECRET)
    startup.remember(store, first, first.identity)

    assert first.identity.open_mesh
    assert begun(store).identity.open_mesh


def test_a_mesh_that_was_made_with_a_key_of_its_own_is_not(store):
    first = begun(store, {"init": True})
    startup.remember(store, first, first.identity)

    assert not first.identity.open_mesh
    assert not begun(store).identity.open_mesh


def test_once_sealed_it_stays_sealed_even_if_the_secret_is_still_given(store):
    first = begun(store, environment=SECRET)
    startup.remember(store, first, first.identity)

    startup.update(store, replace(first.identity, open_mesh=False))

    assert not begun(store, environment=SECRET).identity.open_mesh


@pytest.mark.parametrize("is_open", [True, False])
def test_a_token_says_which_it_is(store, is_open):
    given = format_token(replace(token(), open_mesh=is_open))

    assert parse_token_untrusted(given).open_mesh == is_open
    assert begun(store, environment={"MESHD_TOKEN": given}).identity.open_mesh == is_open


@pytest.mark.parametrize("secret", [SECRET, {}], ids=["secret given", "no secret"])
def test_of_state_that_does_not_say_the_secret_tells(store, monkeypatch, secret):
    first = begun(store, environment=SECRET)
    startup.remember(store, first, first.identity)
    load = store.load_meta
    monkeypatch.setattr(store, "load_meta", lambda k: None if k is Meta.OPEN_MESH else load(k))

    assert begun(store, environment=secret).identity.open_mesh == bool(secret)
