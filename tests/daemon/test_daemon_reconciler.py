"""Looks at the device between two runs of its owner."""

import errno
from dataclasses import replace

import pytest
import trio

from meshd.daemon import reconciler as module
from meshd.daemon.reconciler import Reconciler
from meshd.errors import DeviceError
from meshd.keys import WireGuardPrivateKey
from meshd.net.link import LinkSpec, LinkStatus
from meshd.plan.plan import DesiredState
from meshd.wg.types import DeviceSpec
from wg.fake_device import FakeDevice

PRIVATE_KEY = WireGuardPrivateKey(bytes(range(32)))
NEXT_KEY = WireGuardPrivateKey(bytes(range(1, 33)))


class Device(FakeDevice):
    """One that may refuse, and that must not be used once it is closed."""

    refusal = None
    closed = False

    def observe(self):
        assert not self.closed
        if self.refusal is not None:
            raise self.refusal
        return super().observe()

    def close(self):
        self.closed = True


class Links:
    """An interface that is as it should be, or is gone."""

    def __init__(self):
        self.index = 1

    def observe(self, _interface):
        if self.index is None:
            return None
        return LinkStatus(self.index, "wireguard", mtu=1420, up=True, ipv6_ready=True)


@pytest.fixture
def owner():
    links = Links()
    desired = DesiredState(
        device=DeviceSpec(PRIVATE_KEY, listen_port=51820, fwmark=0, peers={}),
        link=LinkSpec(frozenset(), frozenset(), mtu=1420),
    )
    plan = [desired]
    reconciler = Reconciler(
        "mesh0",
        backend="userspace",
        device=Device(),
        links=links,
        mux=None,
        desired=lambda: plan[0],
        observed=lambda _: None,
        repaired=lambda _kind, _text: None,
        link_replaced=lambda: None,
    )
    reconciler.links = links
    reconciler.plan = plan
    return reconciler


async def test_a_look_changes_nothing(owner):
    status = owner.look()

    assert status == owner.device.observe()
    assert status.listen_port == 0
    assert len(owner.device.history) == 1
    assert owner.statistics.runs == 0


async def test_a_look_that_fails_is_the_last_until_the_device_works_again(owner, autojump_clock):
    owner.device.refusal = DeviceError("read", errno.ETIMEDOUT)
    assert owner.look() is None
    assert owner.statistics.errors == 1
    assert owner.look() is None
    assert owner.statistics.errors == 1  # the second one has not asked the device

    owner.device.refusal = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(owner.run)
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()

    assert owner.look().listen_port == 51820


async def test_nobody_gets_a_look_while_the_interface_is_made_anew(owner, monkeypatch):
    await owner.reconcile()
    owner.links.index = None
    looks = []

    def open_device(*_arguments, **_options):
        looks.append(trio.from_thread.run_sync(owner.look))
        owner.links.index = 2
        return Device()

    monkeypatch.setattr(module, "open_device", open_device)
    owner.resync()
    await owner.reconcile()

    assert looks == [None]
    assert owner.look() is not None


async def test_nobody_gets_a_look_at_an_interface_that_is_to_go(owner):
    owner.stop()

    assert owner.look() is None


def change_key(owner):
    plan = owner.plan[0]
    owner.plan[0] = replace(plan, device=replace(plan.device, private_key=NEXT_KEY))


async def test_who_hurries_has_the_device_as_planned_at_once(owner):
    await owner.reconcile()
    change_key(owner)

    owner.hurry()

    assert owner.device.observe().private_key == NEXT_KEY


async def test_a_run_that_began_before_a_key_was_changed_does_not_take_it_back(owner, monkeypatch):
    reconcile_link = owner._reconcile_link

    async def slow(link):
        await reconcile_link(link)
        change_key(owner)
        owner.hurry()

    monkeypatch.setattr(owner, "_reconcile_link", slow)

    await owner.reconcile()

    keys = [state.private_key for state in owner.device.history]
    assert keys[-1] == NEXT_KEY
    assert PRIVATE_KEY not in keys


async def test_what_is_refused_in_a_hurry_is_done_later(owner, autojump_clock):
    await owner.reconcile()
    change_key(owner)
    owner.device.refusal = DeviceError("write", errno.ETIMEDOUT)

    owner.hurry()
    assert owner.statistics.errors == 1

    owner.device.refusal = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(owner.run)
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
    assert owner.device.observe().private_key == NEXT_KEY


@pytest.mark.parametrize(
    ("urgent", "at"),
    [(False, 0.4), (True, 0.4), (True, 0.2)],
    ids=["in its time", "at once", "during the run before"],
)
async def test_a_rest_after_a_long_run_ends_early_for_what_must_not_stay(
    owner, monkeypatch, autojump_clock, urgent, at
):
    """A run of 0.3 s is followed by a rest of 0.9 s, so that others get their share."""
    ended = []

    async def slow():
        await trio.sleep(0.3)
        ended.append(trio.current_time())

    monkeypatch.setattr(owner, "reconcile", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(owner.run)
        owner.wake()
        await trio.sleep(at)
        wanted_at = trio.current_time()
        if urgent:
            owner.end_rest()
        owner.wake()
        await trio.sleep(2.0)
        nursery.cancel_scope.cancel()

    took = ended[1] - wanted_at
    assert (took < 0.5) == urgent
