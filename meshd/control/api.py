"""What each request means.  HTTP and JSON end here; the daemon is a `Controller`.

| request                                | answer                                               |
| -------------------------------------- | ---------------------------------------------------- |
| `GET /v1/status`                       | `meshd.status/1`                                     |
| `GET /v1/peers`                        | `meshd.peers/1`                                      |
| `POST /v1/ping {name,count,interval}`  | lines of `meshd.ping/1`, then `meshd.ping-summary/1` |
| `GET /v1/wait?members=…&…&timeout=…`   | `meshd.wait/1`, as soon as it holds, or at the end   |
| `… /v1/invites…`                       | see `meshd.control.invites`                          |
| `… /v1/pending`, `/v1/approve`, `/v1/deny` | see `meshd.control.approval`                     |
| `GET /v1/why?name=…`                   | see `meshd.control.why`                              |
| `GET /v1/netcheck`                     | see `meshd.control.netcheck`                         |
| `GET /v1/relays`, `POST /v1/drain`     | see `meshd.control.relaying`                         |
| `GET /v1/keys`, `POST /v1/keys/rotate` | see `meshd.control.keys`                             |
| `GET`, `POST /v1/keys/node`            | see `meshd.control.rekeying`                         |
| `GET /v1/events?recent=…`              | `meshd.events/1`                                     |
| `GET /v1/events?follow=1&recent=…`     | lines of `meshd.event/1`                             |
| `POST /v1/leave`                       | `meshd.leave/1`; then the daemon ends                |
| `POST /v1/forget {name}`               | `meshd.forget/1`                                     |
| `POST /v1/revoke {name,…}`             | `meshd.revoke/1`: see `meshd.control.revoking`       |
| `GET /v1/audit…`                       | see `audit`                                          |
| `POST /v1/seal`, `/v1/keys/rotate-…`   | see `meshd.control.sealing`                          |

An error is `{"error": {"code": …, "message": …}}` with a fitting status: 400 for what cannot be
meant, 403 for what this node may not do, 404 and 409 for what is not there or not so.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

import trio

from meshd.control import views
from meshd.control.approval import ApprovalController, approval_routes
from meshd.control.audit import audit_routes
from meshd.control.events import EVENTS_KEPT_MAX
from meshd.control.fields import Fields
from meshd.control.invites import InviteController, invite_routes
from meshd.control.keys import keys_document
from meshd.control.lookup import find_member
from meshd.control.netcheck import netcheck_route
from meshd.control.rekeying import RekeyingController, rekeying_routes
from meshd.control.relaying import RelayController, relay_routes
from meshd.control.revoking import revoke_route
from meshd.control.routes import ApiError, Lines, Reply, bad_request
from meshd.control.sealing import SealingController, sealing_routes
from meshd.control.snapshot import STATES
from meshd.control.waiting import Condition
from meshd.control.why import why_route

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    from meshd.control.events import EventHub
    from meshd.control.keys import KeysSnapshot
    from meshd.control.netcheck import NetcheckSnapshot
    from meshd.control.revoking import RevokeAnswer, RevokeRequest
    from meshd.control.routes import Document, Request, Routes
    from meshd.control.snapshot import (
        MemberSnapshot,
        MeshSnapshot,
        PeerSnapshot,
        PingAnswer,
    )
    from meshd.control.why import WhySnapshot
    from meshd.keys import NodeId

PINGS_MAX = 1_000_000
PING_INTERVAL_MIN = 0.01
PING_INTERVAL_MAX = 3600.0
PING_TIMEOUT = 2.0

# Longer waits are made of several requests, so that a client that has gone is noticed.
WAIT_MAX = 30.0
# What waits is looked at again on every event, and this often in between: not everything that a
# condition may name (a path that becomes proven, readiness) is an event of its own.
WAIT_RECHECK_INTERVAL = 0.25

MEMBERS_MAX = 65536


class Controller(
    InviteController,
    ApprovalController,
    SealingController,
    RekeyingController,
    RelayController,
    Protocol,
):
    """The daemon, as requests see it.

    All methods run in the daemon's own trio loop, so what `status` returns is consistent.  They
    refuse by raising `ApiError` (see `not_allowed`); any other `MeshdError` is answered with 503.
    """

    @property
    def events(self) -> EventHub:
        """Where events are published."""

    @property
    def database(self) -> Path:
        """Where the audit log is."""

    def status(self) -> MeshSnapshot:
        """Return the mesh as it is seen at this moment."""

    def peers(self) -> Sequence[PeerSnapshot]:
        """Return the WireGuard device's peers."""

    async def ping(self, node: NodeId, timeout: float) -> PingAnswer:  # noqa: ASYNC109 - `rtt` is None then, nothing is raised
        """Ping a member through its tunnel once."""

    def why(self, member: MemberSnapshot) -> WhySnapshot:
        """Return what is known of the way to a member."""

    def netcheck(self) -> NetcheckSnapshot:
        """Return what is known of this node's network."""

    def keys(self) -> KeysSnapshot:
        """Return what may be shown of this node's keys."""

    async def rotate_key(self) -> None:
        """Begin to replace the WireGuard key."""

    async def forget(self, node: NodeId) -> None:
        """Drop what is known of a member that is not alive."""

    async def revoke(self, request: RevokeRequest) -> RevokeAnswer:
        """Throw a member out, or say what that would come to.  It is on disk when this returns."""

    async def leave(self) -> None:
        """Announce departure and take the interface down."""

    def stop(self) -> None:
        """End the daemon with exit status 0.  Called after `leave` has been answered."""


def not_allowed(message: str) -> ApiError:
    """Return the refusal of something this node has no right to do."""
    return ApiError(HTTPStatus.FORBIDDEN, "not-allowed", message)


def make_routes(controller: Controller) -> Routes:
    """Return the handlers of all requests."""
    api = _Api(controller)
    return {
        ("GET", "/v1/status"): api.status,
        ("GET", "/v1/peers"): api.peers,
        ("POST", "/v1/ping"): api.ping,
        ("GET", "/v1/wait"): api.wait,
        ("GET", "/v1/keys"): api.keys,
        ("POST", "/v1/keys/rotate"): api.rotate_key,
        ("GET", "/v1/events"): api.events,
        ("POST", "/v1/leave"): api.leave,
        ("POST", "/v1/forget"): api.forget,
        ("POST", "/v1/revoke"): revoke_route(controller.revoke),
        ("GET", "/v1/why"): why_route(controller.status, controller.why),
        ("GET", "/v1/netcheck"): netcheck_route(controller.netcheck),
        **relay_routes(controller),
        **invite_routes(controller),
        **sealing_routes(controller),
        **rekeying_routes(controller),
        **approval_routes(controller),
        **audit_routes(lambda: controller.database),
    }


class _Api:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def status(self, request: Request) -> Document:
        Fields(request.query).done()
        return views.status_document(self._controller.status())

    async def peers(self, request: Request) -> Document:
        Fields(request.query).done()
        return views.peers_document(self._controller.peers())

    async def ping(self, request: Request) -> Lines:
        fields = Fields(request.body)
        name = fields.needed_text("name")
        count = fields.whole("count", minimum=1, maximum=PINGS_MAX, default=4)
        until_direct = fields.flag("until_direct")
        interval = fields.number(
            "interval", minimum=PING_INTERVAL_MIN, maximum=PING_INTERVAL_MAX, default=1.0
        )
        fields.done()
        member = find_member(self._controller.status(), name)
        return Lines(self._pings(member, count, interval, until_direct=until_direct))

    async def _pings(
        self, member: MemberSnapshot, count: int, interval: float, *, until_direct: bool
    ) -> AsyncGenerator[Document, None]:
        rtts = []
        for number in range(1, count + 1):
            started = trio.current_time()
            answer = await self._controller.ping(member.id, PING_TIMEOUT)
            rtts.append(answer.rtt)
            yield views.ping_document(member, number, answer)
            if until_direct and answer.rtt is not None and answer.path == "direct":
                break
            if number < count:
                await trio.sleep_until(started + interval)
        yield views.ping_summary_document(member, rtts)

    async def wait(self, request: Request) -> Document:
        fields = Fields(request.query)
        members = fields.whole("members", minimum=0, maximum=MEMBERS_MAX, default=0)
        condition = Condition(
            members=members or None,
            name=fields.text("name"),
            state=fields.choice("state", STATES),
            path=fields.choice("path", ("direct", "relayed")),
        )
        seconds = fields.number("timeout", minimum=0, maximum=WAIT_MAX, default=WAIT_MAX)
        fields.done()
        if condition.state is not None and condition.name is None:
            raise bad_request("state needs a name: whose state?")
        started = trio.current_time()
        lacks = await self._wait_until(condition, deadline=started + seconds)
        return {
            "schema": "meshd.wait/1",
            "satisfied": lacks is None,
            "lacks": lacks,
            "waited_s": round(trio.current_time() - started, 3),
        }

    async def _wait_until(self, condition: Condition, *, deadline: float) -> str | None:
        while True:
            lacks = condition.lacks(self._controller.status())
            now = trio.current_time()
            if lacks is None or now >= deadline:
                return lacks
            with trio.move_on_at(min(deadline, now + WAIT_RECHECK_INTERVAL)):
                await self._controller.events.wait_published()

    async def keys(self, request: Request) -> Document:
        Fields(request.query).done()
        return keys_document(self._controller.keys())

    async def rotate_key(self, request: Request) -> Document:
        Fields(request.body).done()
        await self._controller.rotate_key()
        return keys_document(self._controller.keys())

    async def events(self, request: Request) -> Document | Lines:
        fields = Fields(request.query)
        follow = fields.flag("follow")
        recent = fields.whole(
            "recent", minimum=0, maximum=EVENTS_KEPT_MAX, default=0 if follow else EVENTS_KEPT_MAX
        )
        fields.done()
        if follow:
            return Lines(self._follow(recent))
        return views.events_document(self._controller.events.recent(recent))

    async def _follow(self, recent: int) -> AsyncGenerator[Document, None]:
        with self._controller.events.subscribe() as subscription:
            # Taken in the same step as the subscription begins: nothing is missed or told twice.
            for record in self._controller.events.recent(recent):
                yield views.event_document(record)
            async for record in subscription:
                yield views.event_document(record)

    async def leave(self, request: Request) -> Reply:
        Fields(request.body).done()
        await self._controller.leave()
        return Reply({"schema": "meshd.leave/1", "left": True}, afterwards=self._controller.stop)

    async def forget(self, request: Request) -> Document:
        fields = Fields(request.body)
        name = fields.needed_text("name")
        fields.done()
        member = find_member(self._controller.status(), name)
        if member.state == "alive":
            raise ApiError(
                HTTPStatus.CONFLICT,
                "member-alive",
                f"{member.name} is alive and would come back at once; "
                "end it there with `meshctl leave`",
            )
        await self._controller.forget(member.id)
        return {"schema": "meshd.forget/1", "id": str(member.id), "name": member.name}
