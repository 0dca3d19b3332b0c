"""Why a member does not let somebody in: a value, not an exception, for it goes into the answer.

A text says what happened and what to do about it.  It reaches only those who hold the bootstrap
key, and holds nothing they could not learn as members.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

REFUSAL_TEXT_BYTES_MAX = 320


class RefusalCode(enum.IntEnum):
    """The values are part of the wire format.  Only append."""

    OTHER = 0  # also what a code from a later version is read as
    EXPIRED = 1  # the invite's time is over
    USED = 2  # the invite has been used as often as it may be
    WITHDRAWN = 3  # the invite was taken back
    FOREIGN = 4  # the invite is not of this mesh, or altered
    NAME_TAKEN = 5
    NAME_MALFORMED = 6
    INVITER_UNKNOWN = 7  # this member has not heard of the inviter
    INVITER_NOT_ALLOWED = 8  # the inviter may not admit, or may not grant that much
    NOT_ALLOWED = 9  # this member may not admit
    CHAIN_TOO_LONG = 10
    CANNOT_NARROW = 11  # this member may not grant what the invite promises
    REVOKED = 12
    FULL = 13
    ANSWER_TOO_LONG = 14  # the answer would not fit into a datagram
    CREDENTIAL_TOO_LONG = 15  # name, tags and routes together
    TOO_LATE = 16  # the credential has expired too long ago to be renewed
    NO_GAIN = 17  # this member could not make the credential last any longer
    SEALED = 18  # the mesh has followed another root, and has no grant for this node
    SUCCEEDED = 19  # the node goes on under another id
    UNFOUNDED = 20  # what lets the node in counts no more: a succeeded id has signed it


# Another member, or the same one a little later, may well say yes.
_PASSING = frozenset(
    {
        RefusalCode.OTHER,
        RefusalCode.INVITER_UNKNOWN,
        RefusalCode.NOT_ALLOWED,
        RefusalCode.CHAIN_TOO_LONG,
        RefusalCode.CANNOT_NARROW,
        RefusalCode.FULL,
        RefusalCode.ANSWER_TOO_LONG,
        RefusalCode.NO_GAIN,
    }
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A no, with its reason."""

    code: RefusalCode
    text: str

    def __post_init__(self) -> None:
        assert len(self.text.encode()) <= REFUSAL_TEXT_BYTES_MAX

    @property
    def final(self) -> bool:
        """Whether trying again, here or at another member, is no use."""
        return self.code not in _PASSING


def refusal_untrusted(code: int, text: str) -> Refusal:
    """Return the refusal that an answer from outside names, its text made fit for a terminal."""
    printable = "".join(char for char in text if char.isascii() and char.isprintable())
    printable = printable[:REFUSAL_TEXT_BYTES_MAX]
    try:
        return Refusal(RefusalCode(code), printable)
    except ValueError:
        return Refusal(RefusalCode.OTHER, printable)
