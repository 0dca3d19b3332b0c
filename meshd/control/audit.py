"""The audit log over the control socket, and as documents.

| request                        | answer                                                |
| ------------------------------ | ----------------------------------------------------- |
| `GET /v1/audit?last=N`         | lines of `meshd.audit-entry/1`, oldest first          |
| `GET /v1/audit/verify?noted=H` | `meshd.audit-verify/1`                                |

A long log is read in a thread, by a connection of its own: the mesh does not wait for it.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import trio

from meshd.audit import DETAILS_BYTES_MAX, ENTRIES_MAX, Head
from meshd.control.fields import Fields
from meshd.control.routes import Lines, bad_request
from meshd.store_audit import reading

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from meshd.audit import Entry, Verdict
    from meshd.control.routes import Document, Json, Request, Routes

ENTRIES_AT_ONCE = 500


def audit_routes(database: Callable[[], Path]) -> Routes:
    """Return the handlers; `database` says where the log is."""

    async def show(request: Request) -> Lines:
        fields = Fields(request.query)
        last = fields.whole("last", minimum=1, maximum=2 * ENTRIES_MAX, default=2 * ENTRIES_MAX)
        fields.done()
        return Lines(_entries(database(), last))

    async def verify(request: Request) -> Document:
        fields = Fields(request.query)
        text = fields.text("noted")
        fields.done()
        try:
            noted = None if text is None else Head.parse(text)
        except ValueError:
            raise bad_request("noted must be a head as `audit verify` shows it") from None
        return await trio.to_thread.run_sync(verify_document, database(), noted)

    return {("GET", "/v1/audit"): show, ("GET", "/v1/audit/verify"): verify}


async def _entries(path: Path, last: int) -> AsyncGenerator[Document, None]:
    after = None
    while last:
        read = partial(_read, path, last=last, after=after)
        entries = await trio.to_thread.run_sync(read)
        for entry in entries:
            yield entry_document(entry)
        if len(entries) < min(last, ENTRIES_AT_ONCE):
            return
        last -= len(entries)
        after = entries[-1].number


def _read(path: Path, *, last: int, after: int | None) -> list[Entry]:
    with reading(path) as log:
        start = log.before_last(last) if after is None else after
        return log.after(start, min(last, ENTRIES_AT_ONCE))


def verify_document(path: Path, noted: Head | None) -> Document:
    """Check a whole log and return `meshd.audit-verify/1`.  Raise StartError."""
    with reading(path) as log:
        verdict = log.verify()
        contained = None if noted is None else log.contains(noted)
    return {
        "schema": "meshd.audit-verify/1",
        "ok": verdict.fault is None and contained is not False,
        "first": verdict.first,
        "entries": verdict.count,
        "head": str(verdict.head),
        "fault": _fault(verdict),
        "noted": None if noted is None else {"head": str(noted), "contained": contained},
    }


def entry_document(entry: Entry) -> Document:
    """Return `meshd.audit-entry/1`."""
    act = entry.act
    return {
        "schema": "meshd.audit-entry/1",
        "number": entry.number,
        "at": _instant(act.at),
        "kind": act.kind,
        "subject": _who(act.subject, act.subject_name),
        "signer": _who(act.signer, act.signer_name),
        "details": _details(act.details),
        "hash": entry.hash.hex(),
    }


def _fault(verdict: Verdict) -> Document | None:
    fault = verdict.fault
    return None if fault is None else {"number": fault.number, "reason": fault.reason}


def _who(id_: str, name: str) -> Document | None:
    return {"id": id_, "name": name or None} if id_ else None


def _instant(at: int) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return str(at)  # not ours: somebody has been at the table


def _details(text: str) -> Json:
    try:
        details: Json = json.loads(text)
    except (ValueError, RecursionError):
        return {"unreadable": text[:DETAILS_BYTES_MAX]}
    return details
