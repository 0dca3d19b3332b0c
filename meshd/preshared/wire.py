"""What two members say to agree on a key, inside their tunnel.

    OFFER                           ANSWER                          CONFIRM
     1  reference, 8 bytes           1  reference                    1  held
     2  public, 1,184 bytes          2  ciphertext, 1,088 bytes      2  believed
     3  previous: a tag              3  held                         3  asks: bool
                                     4  believed

    held      the tags of what the sender holds, newest first; absent: it takes no part
    believed  what it believes the receiver to hold; absent: it does not know
    previous  of the key that both use; absent: none

Each is a map; behind its mark it fits into the 1,232 bytes of an overlay datagram, the longest
with 20 to spare.  They need no signature: WireGuard lets nobody but the member through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from meshd.codec import Fields, pack
from meshd.preshared.kem import CIPHERTEXT_BYTES, PUBLIC_BYTES
from meshd.preshared.keys import TAG_BYTES, TAGS_BYTES_MAX, Tags, join_tags, split_tags_untrusted

REFERENCE_BYTES = 8


@dataclass(frozen=True, slots=True)
class Offer:
    """The lower node begins."""

    reference: bytes
    public: bytes
    previous: bytes | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The first tag held is the new key's: whoever can say it has the key."""

    reference: bytes
    ciphertext: bytes
    held: Tags
    believed: Tags | None


@dataclass(frozen=True, slots=True)
class Confirm:
    """Says which keys there are; the end of an agreement, and of every doubt."""

    held: Tags | None
    believed: Tags | None
    asks: bool = False  # for a Confirm in return


Message: TypeAlias = Offer | Answer | Confirm


def encode(message: Message) -> bytes:
    """Return the map of a message."""
    match message:
        case Offer(reference, public, previous):
            return _packed({1: reference, 2: public, 3: previous})
        case Answer(reference, ciphertext, held, believed):
            return _packed({1: reference, 2: ciphertext, 3: join_tags(held), 4: _joined(believed)})
        case Confirm(held, believed, asks):
            return _packed({1: _joined(held), 2: _joined(believed), 3: asks or None})


def decode_offer_untrusted(data: bytes) -> Offer:
    """Parse an offer."""
    fields = Fields.unpack_untrusted(data, what="key offer")
    offer = Offer(
        reference=fields.blob(1, size=REFERENCE_BYTES),
        public=fields.blob(2, size=PUBLIC_BYTES),
        previous=fields.blob(3, size=TAG_BYTES) if fields.has(3) else None,
    )
    fields.done()
    return offer


def decode_answer_untrusted(data: bytes) -> Answer:
    """Parse an answer."""
    fields = Fields.unpack_untrusted(data, what="key answer")
    answer = Answer(
        reference=fields.blob(1, size=REFERENCE_BYTES),
        ciphertext=fields.blob(2, size=CIPHERTEXT_BYTES),
        held=split_tags_untrusted(fields.blob(3, maximum=TAGS_BYTES_MAX)),
        believed=_tags(fields, 4),
    )
    fields.done()
    return answer


def decode_confirm_untrusted(data: bytes) -> Confirm:
    """Parse a confirmation."""
    fields = Fields.unpack_untrusted(data, what="key confirmation")
    confirm = Confirm(held=_tags(fields, 1), believed=_tags(fields, 2), asks=fields.flag(3))
    fields.done()
    return confirm


def _packed(fields: dict[int, object]) -> bytes:
    return pack({key: value for key, value in fields.items() if value is not None})


def _joined(tags: Tags | None) -> bytes | None:
    return None if tags is None else join_tags(tags)


def _tags(fields: Fields, key: int) -> Tags | None:
    if not fields.has(key):
        return None
    return split_tags_untrusted(fields.blob(key, maximum=TAGS_BYTES_MAX))
