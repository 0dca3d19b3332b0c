"""Approval mode of a member: what its operator opens, sees and decides.

Who is approved gets a token of its own: single-use, short-lived, with the name that was approved,
sealed in the session whose code a person has compared.  It comes in by that like anybody else.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import trio

from meshd.bootstrap.approval import Reply, ReplyVerdict
from meshd.control.approval import ApprovalSnapshot, PendingSnapshot, unknown_code
from meshd.control.routes import ApiError
from meshd.daemon import invites
from meshd.trust.invite import encode_token

if TYPE_CHECKING:
    from meshd.bootstrap.approval_member import Pending
    from meshd.control.invites import InviteRequest
    from meshd.daemon.daemon import Daemon

_STATES = {
    ReplyVerdict.WAIT: "waiting",
    ReplyVerdict.APPROVED: "approved",
    ReplyVerdict.DENIED: "denied",
}


def snapshot(daemon: Daemon) -> ApprovalSnapshot:
    """Return who waits here."""
    approval, now = daemon.engine.approval, trio.current_time()
    return ApprovalSnapshot(
        open_for=None if approval.until is None else max(0.0, approval.until - now),
        pending=tuple(_snapshot(pending, now) for pending in approval.pending()),
    )


async def open_window(daemon: Daemon, span: float) -> None:
    """Let newcomers ask.  Raise ApiError if this node could not let them in."""
    invites.require_right(daemon)
    await daemon.driver.submit(partial(daemon.engine.approval.open, span))
    daemon.audit.note(
        "approval-opened",
        subject=daemon.engine.identity.node,
        signer=daemon.engine.identity.node,
        details={"open_for_s": span},
    )


async def close_window(daemon: Daemon) -> None:
    """Answer no newcomer any more."""
    await daemon.driver.submit(daemon.engine.approval.close)


async def approve(daemon: Daemon, code: str, grants: InviteRequest) -> PendingSnapshot:
    """Let in the newcomer with a code.  Raise ApiError."""
    pending = _find(daemon, code)
    name = grants.name or pending.name
    _check(daemon, pending, name)
    invite, token = invites.issue(daemon, replace(grants, name=name))
    reply = Reply(ReplyVerdict.APPROVED, encode_token(token))
    await _decide(daemon, code, reply)
    daemon.audit.note(
        "newcomer-approved",
        subject=pending.node,
        signer=daemon.engine.identity.node,
        details={"name": name, "address": str(pending.source), "invite": str(invite.id)},
    )
    return replace(_snapshot(pending, trio.current_time()), name=name, state="approved")


async def deny(daemon: Daemon, code: str) -> PendingSnapshot:
    """Send away the newcomer with a code.  Raise ApiError."""
    pending = _find(daemon, code)
    await _decide(daemon, code, Reply(ReplyVerdict.DENIED))
    return replace(_snapshot(pending, trio.current_time()), state="denied")


def _find(daemon: Daemon, code: str) -> Pending:
    for pending in daemon.engine.approval.pending():
        if pending.code == code:
            return pending
    raise unknown_code(code)


def _check(daemon: Daemon, pending: Pending, name: str) -> None:
    """Raise ApiError for what the newcomer would only be refused for later."""
    ledger = daemon.engine.ledger
    if pending.verdict is not ReplyVerdict.WAIT:
        raise ApiError(
            HTTPStatus.CONFLICT, "decided", f"{pending.name} is {_STATES[pending.verdict]} already"
        )
    if ledger.name_owner(name) not in {None, pending.node}:
        raise ApiError(
            HTTPStatus.CONFLICT,
            "name-taken",
            f"the name {name} belongs to another member: give this one another with --name",
        )
    if ledger.revocation(pending.node) is not None:
        raise ApiError(
            HTTPStatus.CONFLICT,
            "revoked",
            f"node {pending.node.short} is revoked for good: it takes a new state directory there",
        )


async def _decide(daemon: Daemon, code: str, reply: Reply) -> None:
    if not await daemon.driver.submit(partial(daemon.engine.approval.decide, code, reply)):
        raise unknown_code(code)  # it has gone in this very moment, or a decision was made


def _snapshot(pending: Pending, now: float) -> PendingSnapshot:
    return PendingSnapshot(
        code=pending.code,
        name=pending.name,
        id=pending.node,
        source=pending.source,
        age=max(0.0, now - pending.asked_at),
        state=_STATES[pending.verdict],
    )
