from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from meshd.sdnotify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["file", "abstract"])
def supervisor(request, tmp_path) -> Iterator[tuple[socket.socket, str]]:
    address = str(tmp_path / "notify") if request.param == "file" else f"@meshd-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0"))
        listener.settimeout(5)
        yield listener, address


def test_the_supervisor_is_told_how_we_are(supervisor) -> None:
    listener, address = supervisor
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready("5 members\nall alive")
    notifier.status("4 members")
    notifier.reloading(2.5)
    notifier.watchdog()
    notifier.stopping()
    assert [listener.recv(4096) for _ in range(5)] == [
        b"READY=1\nSTATUS=5 members all alive",
        b"STATUS=4 members",
        b"RELOADING=1\nMONOTONIC_USEC=2500000",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]
    notifier.close()
    notifier.status("nobody hears this")


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_supervisor_nothing_happens(environment) -> None:
    notifier = Notifier.from_environment(environment)
    notifier.ready("up")
    notifier.close()


def test_a_supervisor_that_has_gone_is_no_error(tmp_path) -> None:
    notifier = Notifier(str(tmp_path / "absent"))
    notifier.ready("up")
    notifier.close()


def test_a_supervisor_that_does_not_listen_does_not_block_us(supervisor) -> None:
    _, address = supervisor
    notifier = Notifier(address)
    for _ in range(10_000):
        notifier.watchdog()
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_wants_a_sign_twice_in_its_timeout(environment, interval) -> None:
    assert Notifier.from_environment(environment).watchdog_interval == interval
