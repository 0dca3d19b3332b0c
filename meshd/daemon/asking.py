"""Approval mode of a newcomer: what `meshd --ask-approval` does before it is in any mesh.

    ask ──▶ code, on both screens ──▶ approved: a token ──▶ start as with any token
                                 └──▶ denied: the end

Nothing is made on the host but a socket to ask with and the control socket, and both are closed
again before the ordinary start begins.
"""

from __future__ import annotations

import logging
import random
import signal
from contextlib import ExitStack
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from meshd import logs
from meshd.bootstrap.approval_newcomer import Approved, Denied, Listed, Lost, Newcomer, Silent
from meshd.control.approval import ApprovalSnapshot, OwnCode, pending_document
from meshd.control.fields import Fields
from meshd.control.routes import ApiError
from meshd.control.server import serve
from meshd.control.socket import ControlSocket
from meshd.daemon.host import FWMARK
from meshd.daemon.names import look_up
from meshd.errors import BadPacket, StartError, UsageError
from meshd.net.underlay import Underlay
from meshd.sdnotify import Notifier
from meshd.trust.invite import decode_token_untrusted, format_token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshd.bootstrap.approval_newcomer import NewcomerEvent
    from meshd.config import Config
    from meshd.control.routes import Document, Handler, Request, Routes
    from meshd.store import Store

log = logging.getLogger(__name__)

RESOLVE_INTERVAL = 30.0
RESOLVE_INTERVAL_EMPTY = 2.0  # while no seed has an address

# What can be asked of a member, and not of a machine that is in no mesh.
_OF_MEMBERS = (
    ("GET", "/v1/status"),
    ("GET", "/v1/peers"),
    ("GET", "/v1/invites"),
    ("GET", "/v1/events"),
    ("POST", "/v1/approve"),
    ("POST", "/v1/deny"),
    ("POST", "/v1/forget"),
    ("POST", "/v1/invites"),
    ("POST", "/v1/leave"),
    ("POST", "/v1/pending"),
    ("POST", "/v1/ping"),
)


def is_due(config: Config, store: Store) -> bool:
    """Whether this start has to ask for approval first."""
    return config.ask_approval and store.mesh is None


async def ask(config: Config, store: Store, signals: AsyncIterator[int]) -> Config | None:
    """Wait for approval.  Return the configuration with the token; None if told to end.

    Raise StartError when denied, UsageError when there is nobody to ask.
    """
    if not config.seeds:
        raise UsageError(
            "--ask-approval needs to know a member to ask: add --seed HOST[:PORT]; there, "
            "`meshctl pending --open` has to be run"
        )
    if any(seed.scheme for seed in config.seeds):
        raise UsageError("--ask-approval asks by UDP only: give a --seed HOST[:PORT], or a token")
    with ExitStack() as opened:
        control = ControlSocket.listen(config.socket_path)
        opened.callback(control.close)
        underlay = Underlay(fwmark=FWMARK)
        opened.callback(underlay.close)
        notifier = Notifier.from_environment()
        opened.callback(notifier.close)
        asking = _Asking(config, store, underlay, notifier)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking.receive)
            nursery.start_soon(asking.resolve)
            nursery.start_soon(asking.feed_watchdog)
            nursery.start_soon(_obey_signals, signals, nursery.cancel_scope)
            nursery.start_soon(serve, control, asking.routes())
            notifier.ready("asks to be let in")
            await asking.run()
            nursery.cancel_scope.cancel()
    if asking.token is None:
        return None
    return replace(config, token=asking.token, ask_approval=False)


class _Asking:
    """The core, and what goes in and out of it.  All of it runs in one thread."""

    def __init__(
        self, config: Config, store: Store, underlay: Underlay, notifier: Notifier
    ) -> None:
        self.token: str | None = None
        self._config = config
        self._underlay = underlay
        self._notifier = notifier
        self._core = Newcomer(
            store.node_key.id, config.name, rng=random.SystemRandom(), now=trio.current_time()
        )
        self._changed = trio.Event()

    async def run(self) -> None:
        """Drive the core until it is over.  Raise StartError when denied."""
        while True:
            self._core.handle_timer(trio.current_time())
            self._drain()
            timer = self._core.get_timer()
            if timer is None:
                return
            with trio.move_on_at(timer.at):
                await self._changed.wait()
                self._changed = trio.Event()

    async def receive(self) -> None:
        """Give the core what arrives."""
        while True:
            for datagram in await self._underlay.receive_batch():
                self._core.receive_datagram(datagram.payload, datagram.source, trio.current_time())
            self._changed.set()

    async def resolve(self) -> None:
        """Look up the seeds, and again now and then."""
        names = [str(seed) for seed in self._config.seeds]
        told = False
        while True:
            found = await look_up(names)
            endpoints = [endpoint for each in found.values() for endpoint in each]
            if not endpoints and not told:
                told = True
                log.warning("%s has no address: check the spelling and DNS", ", ".join(names))
            self._core.seeds_resolved(endpoints, trio.current_time())
            self._changed.set()
            await trio.sleep(RESOLVE_INTERVAL if endpoints else RESOLVE_INTERVAL_EMPTY)

    async def feed_watchdog(self) -> None:
        """Tell systemd that we are alive."""
        interval = self._notifier.watchdog_interval
        while interval is not None:
            self._notifier.watchdog()
            await trio.sleep(interval)

    def routes(self) -> Routes:
        """Return what can be asked of a machine that is in no mesh yet."""
        refused: dict[tuple[str, str], Handler] = dict.fromkeys(_OF_MEMBERS, self._refuse)
        return {**refused, ("GET", "/v1/pending"): self._show, ("GET", "/v1/wait"): self._wait}

    # Inside

    def _drain(self) -> None:
        while (event := self._core.next_event()) is not None:
            self._on_event(event)
        for datagram, target, source in self._core.datagrams_to_send():
            self._underlay.send(datagram, target, source)

    def _on_event(self, event: NewcomerEvent) -> None:
        match event:
            case Listed(code, member):
                text = f"asks {member} to be let in; its code is {code}"
                self._notifier.status(text)
                log.warning(
                    "this machine %s: on that member run `meshctl pending`, and if it shows the "
                    "same code, `meshctl approve %s`",
                    text,
                    code,
                    extra=logs.fields(event="approval-code", code=code),
                )
            case Lost(member):
                self._notifier.status("asks to be let in")
                log.warning(
                    "%s is silent: it has ended, or its window has closed (`meshctl pending "
                    "--open` there); the code is void, asking on",
                    member,
                )
            case Silent():
                seeds = ", ".join(str(seed) for seed in self._config.seeds)
                log.warning(
                    "no answer from %s: no window is open there (`meshctl pending --open`), it is "
                    "down, or UDP is blocked on the way; asking on",
                    seeds,
                )
            case Denied(member):
                raise StartError(f"{member} does not let this machine in: its operator said no")
            case Approved(body, member):
                self._take(body, str(member))

    def _take(self, body: bytes, member: str) -> None:
        try:
            token = decode_token_untrusted(body)
        except BadPacket as exc:
            raise StartError(
                f"{member} has approved with a token that makes no sense ({exc.reason}); use the "
                "same version of meshd on both"
            ) from exc
        log.info("approved by %s; joining mesh %s", member, token.mesh.short)
        self.token = format_token(token)

    async def _show(self, request: Request) -> Document:
        Fields(request.query).done()
        listed = self._core.listed
        own = None if listed is None else OwnCode(listed.code, listed.member)
        return pending_document(ApprovalSnapshot(own=own))

    async def _wait(self, request: Request) -> Document:
        fields = Fields(request.query)
        for name in ("members", "name", "state", "path"):
            fields.text(name)
        seconds = fields.number("timeout", minimum=0, maximum=30, default=30)
        fields.done()
        await trio.sleep(seconds)  # or until approved: the client asks again, and finds a member
        return {
            "schema": "meshd.wait/1",
            "satisfied": False,
            "lacks": "this machine is in no mesh yet",
            "waited_s": round(seconds, 3),
        }

    async def _refuse(self, request: Request) -> Document:
        del request
        listed = self._core.listed
        code = "it has no code yet" if listed is None else f"its code is {listed.code}"
        raise ApiError(
            HTTPStatus.CONFLICT,
            "no-mesh-yet",
            f"this machine is in no mesh yet, and asks to be let in; {code}",
        )


async def _obey_signals(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        if number != signal.SIGHUP:
            log.info("ending; this machine has asked in vain to be let in")
            scope.cancel()
            return
