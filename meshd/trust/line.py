"""Lines: on whose word a node is a member, and since when that can be so at most.

    root ─▶ f ─▶ m ─▶ s          s is in on the word of f and m: its chain shows it
    root ─▶ f ─▶ s  (line: m)    renewed by f: its chain shows f alone, its line the rest

A revocation with `cascade` takes whoever is in on the word of the revoked one (`revocation`), and
nobody takes more places among the records than its share (`places`).  Both go by this, for chains
alone are replaced at each renewal.

Rule 1: in on the word of somebody is, whose chain leads through it, and whose credential, or one
        before it in the chain, names it in its line.  A line names only whom the chain does not.

Rule 2: whoever lets somebody in by the invite of another one puts the inviter, and on whose word
        that is in, into the line.

Rule 3: whoever renews takes the line from the chain by which the member came in, which the member
        keeps and shows (`renewal`), and not from the chain that it has at present: the last one
        that renewed it is not to be believed in what it left out.  All chains of a node that a bad
        member has let in lead through that member, or come from an honest one that saw such a
        chain; so none of them hides it.

Rule 4: nobody has been a member for longer than those whose word it is in on, as far as its chain
        shows them, whatever date its own credential bears.  A renewal bears the date that this
        comes to for the chain by which the member came in.

Ids in a line are short: 8 bytes of hash.  To have those of another node takes 2^64 keys, and the
gain would be to fall with it, or to have it fall with oneself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.errors import BadPacket
from meshd.keys import fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshd.codec import Fields
    from meshd.keys import NodeId
    from meshd.trust.credential import Credential

LINE_ID_BYTES = 8
LINE_LENGTH_MAX = 6
LINE_FIELD = 65  # of a credential


def line_id(node: NodeId) -> bytes:
    """Return what a node is called in a line."""
    return fingerprint(node, size=LINE_ID_BYTES, person=b"meshd.line")


def let_in_by(chain: Sequence[Credential]) -> tuple[bytes, ...]:
    """Return on whose word the last subject of a chain is in: those nearest to the root first.

    Whoever has written a line comes before those whom it names.
    """
    ids: dict[bytes, None] = {}
    for number, link in enumerate(chain, 1):
        ids |= dict.fromkeys(link.line)
        if number < len(chain):
            ids[line_id(link.subject)] = None
    return tuple(ids)


def line_for(subject: NodeId, ids: Iterable[bytes], issuers: Sequence[Credential]) -> list[bytes]:
    """Return what the line of a new link has to name, given the chain of its issuer: rule 1."""
    shown = {line_id(subject), line_id(issuers[-1].subject), *let_in_by(issuers)}
    return [id_ for id_ in dict.fromkeys(ids) if id_ not in shown]


def check_line_untrusted(link: Credential, issuers: Sequence[Credential]) -> None:
    """Raise BadPacket unless a link's line is what one can be under the chain of its issuer."""
    if link.line and issuers and list(link.line) != line_for(link.subject, link.line, issuers):
        raise BadPacket("line names whom the chain shows")


def member_since(chain: Sequence[Credential]) -> int:
    """Return since when the last subject of a chain can have been a member: rule 4."""
    return max(link.admitted_at for link in chain)


def line_untrusted(fields: Fields) -> tuple[bytes, ...]:
    """Read the line of a credential."""
    if not fields.has(LINE_FIELD):
        return ()
    packed = fields.blob(LINE_FIELD, maximum=LINE_LENGTH_MAX * LINE_ID_BYTES)
    if not packed or len(packed) % LINE_ID_BYTES:
        raise BadPacket("line of bad length")
    return tuple(packed[at : at + LINE_ID_BYTES] for at in range(0, len(packed), LINE_ID_BYTES))
