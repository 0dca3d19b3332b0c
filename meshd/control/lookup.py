"""From what an operator typed to the one member that is meant.

A member is named by its name, its id, the first `PREFIX_LENGTH_MIN` or more characters of its id,
or one of its addresses, in this order: a name always wins, so nobody can shadow it with an id.
"""

from __future__ import annotations

from difflib import get_close_matches
from http import HTTPStatus
from typing import TYPE_CHECKING

from meshd.control.routes import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.control.snapshot import MemberSnapshot, MeshSnapshot

PREFIX_LENGTH_MIN = 4
NAMES_SHOWN_MAX = 5


def find_member(mesh: MeshSnapshot, text: str) -> MemberSnapshot:
    """Return the member.  Raise ApiError with near matches when it is none, or several."""
    for member in mesh.members:
        if member.name == text:
            return member
    wanted = text.lower()
    found = [member for member in mesh.members if _matches(member, wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(
            f"{member.name} ({member.id.short})" for member in found[:NAMES_SHOWN_MAX]
        )
        raise ApiError(
            HTTPStatus.CONFLICT, "ambiguous-member", f"{text!r} may mean {names}: type more of it"
        )
    me = mesh.me
    if wanted in {me.name, str(me.id), str(me.ipv4), str(me.ipv6)}:
        raise ApiError(HTTPStatus.CONFLICT, "own-name", f"{text!r} is this node itself")
    raise ApiError(
        HTTPStatus.NOT_FOUND,
        "unknown-member",
        f"no member is called {text!r}{hint((member.name for member in mesh.members), wanted)}",
    )


def _matches(member: MemberSnapshot, wanted: str) -> bool:
    if wanted in {str(member.ipv4), str(member.ipv6)}:
        return True
    return len(wanted) >= PREFIX_LENGTH_MIN and str(member.id).startswith(wanted)


def hint(known: Iterable[str], wanted: str) -> str:
    """Return the end of a sentence that says whom somebody may have meant."""
    names = sorted(known)
    if not names:
        return "; this node knows no other member"
    close = get_close_matches(wanted, names, n=NAMES_SHOWN_MAX)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if len(names) <= NAMES_SHOWN_MAX:
        return f"; there are {', '.join(names)}"
    return f"; `meshctl status` lists all {len(names)}"
