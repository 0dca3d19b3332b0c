"""What a relay keeps on disk, so that a restart takes up what the kernel forwards."""

from __future__ import annotations

import sqlite3
from ipaddress import ip_address

import pytest

from meshd.errors import StartError
from meshd.relay.allocations import Binding, Pair, StoredAllocation, StoredSide
from meshd.store import DATABASE_NAME, Store
from relay.members import A, B, C, binding, endpoint

AB, AC = Pair(A.id, B.id), Pair(A.id, C.id)
V6 = Binding(endpoint("2001:db8::7", 40_000), ip_address("2001:db8::1"))


def stored(pair, port=51900, *, asked=(1_700_000_600, 0), where=(None, None)):
    sides = tuple(
        StoredSide(port + number, at, binding)
        for number, (at, binding) in enumerate(zip(asked, where, strict=True))
    )
    return StoredAllocation(pair, sides)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


@pytest.mark.parametrize(
    "allocation",
    [
        stored(AB),
        stored(AB, asked=(0, 1_700_000_600)),
        stored(AC, where=(binding("192.0.2.7", 40_000), None)),
        stored(AC, where=(binding("192.0.2.7", 40_000), V6)),
    ],
)
def test_what_is_kept_comes_back(path, allocation):
    with Store.open(path) as store:
        store.save_allocation(allocation.pair, allocation)
    with Store.open(path) as store:
        assert store.load_allocations() == [allocation]


def test_the_newest_counts_and_what_has_ended_is_gone(path):
    with Store.open(path) as store:
        store.save_allocation(AB, stored(AB))
        store.save_allocation(AC, stored(AC, 51902))
        store.save_allocation(AB, stored(AB, where=(V6, None)))
        store.save_allocation(AC, None)

        assert store.load_allocations() == [stored(AB, where=(V6, None))]


def test_ports_that_go_to_another_pair_are_that_pairs(path):
    with Store.open(path) as store:
        store.save_allocation(AB, stored(AB))
        store.save_allocation(AB, None)
        store.save_allocation(AC, stored(AC))

        assert store.load_allocations() == [stored(AC)]


def test_a_pair_of_which_a_row_is_missing_is_none(path):
    with Store.open(path) as store:
        store.save_allocation(AB, stored(AB))
    with sqlite3.connect(path / DATABASE_NAME) as database:
        database.execute("DELETE FROM relay_ports WHERE port = 51901")
    with Store.open(path) as store:
        assert store.load_allocations() == []


@pytest.mark.parametrize("change", ["member = x'01'", "address = x'0102', address_port = 1"])
def test_nonsense_is_damage(path, change):
    with Store.open(path) as store:
        store.save_allocation(AB, stored(AB))
    with sqlite3.connect(path / DATABASE_NAME) as database:
        database.execute(f"UPDATE relay_ports SET {change} WHERE port = 51900")
    with Store.open(path) as store, pytest.raises(StartError, match="relayed pair"):
        store.load_allocations()
