"""WireGuard keys on disk: all of a step is there, or nothing of it."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from meshd.daemon.rotation import load_keys, save_keys
from meshd.engine.rotation import WireGuardKeys
from meshd.errors import StartError, StoreError
from meshd.keys import WireGuardPrivateKey
from meshd.store import Meta, Secret, Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLD, NEW = (WireGuardPrivateKey(letter * 32) for letter in (b"o", b"n"))
FIRST = WireGuardKeys(OLD, made_at=1000)
ANNOUNCED = WireGuardKeys(OLD, made_at=1000, next=NEW)
SWITCHED = WireGuardKeys(NEW, made_at=2000, former=OLD.public)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "mesh0") as opened:
        opened.keep()
        yield opened


def test_what_was_kept_is_what_a_restart_finds(tmp_path: Path) -> None:
    for keys in (FIRST, ANNOUNCED, SWITCHED):
        with Store.open(tmp_path / "mesh0") as store:
            save_keys(store, keys)
        with Store.open(tmp_path / "mesh0") as store:
            assert load_keys(store, 5000.0) == keys


def test_a_state_without_keys_has_none(store: Store) -> None:
    assert load_keys(store, 5000.0) is None


def test_a_key_of_unknown_age_begins_to_age_once(store: Store) -> None:
    store.save_secret(Secret.WIREGUARD_KEY, bytes(OLD))

    assert load_keys(store, 5000.0) == WireGuardKeys(OLD, made_at=5000)
    assert load_keys(store, 9000.0) == WireGuardKeys(OLD, made_at=5000)


@pytest.mark.parametrize("writes", range(4))
def test_a_step_that_the_disk_does_not_take_leaves_the_step_before(
    store: Store, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    save_keys(store, ANNOUNCED)
    left = [writes]

    def failing(name: str) -> None:
        real = getattr(store, name)

        def write(*args: object, **options: object) -> None:
            if not left[0]:
                raise StoreError("the disk is full")
            left[0] -= 1
            real(*args, **options)

        monkeypatch.setattr(store, name, write)

    for name in ("save_secret", "delete_secret", "save_meta"):
        failing(name)

    with pytest.raises(StoreError):
        save_keys(store, SWITCHED)

    assert load_keys(store, 5000.0) == ANNOUNCED


def test_a_private_key_that_was_replaced_is_not_kept(store: Store, tmp_path: Path) -> None:
    save_keys(store, ANNOUNCED)
    save_keys(store, SWITCHED)

    with sqlite3.connect(tmp_path / "mesh0" / "mesh.db") as database:
        values = [bytes(row[0]) for row in database.execute("SELECT value FROM secrets")]
    assert bytes(NEW) in values
    assert bytes(OLD) not in values


def test_a_former_key_that_makes_no_sense_is_named(store: Store) -> None:
    save_keys(store, SWITCHED)
    store.save_meta(Meta.FORMER_WIREGUARD_KEY, b"short")

    with pytest.raises(StartError, match="WireGuard key"):
        load_keys(store, 5000.0)


def test_private_keys_are_not_in_the_text_of_keys() -> None:
    shown = repr(ANNOUNCED)

    for key in (OLD, NEW):
        assert str(bytes(key)) not in shown
        assert bytes(key).hex() not in shown
