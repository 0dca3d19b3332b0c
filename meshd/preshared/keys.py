"""The keys of a pair: how one is derived, what it is called, which of them is used.

Rule 1: a key depends on everything the two have: the KEM's secret, the X25519 secret of their node
        keys, and the key they had before.  Whoever lacks any of the three lacks the key.

Rule 2: each end holds the newest two keys, newest first, and says which by their tags.  The key in
        use is the first in the lower node's list that the higher one's list has as well; none, if
        there is none.  So two ends that know each other's lists use the same key, whatever either
        has lost or been restored to.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, MeshId, NodeId, PresharedKey, fingerprint

TAG_BYTES = 8
HELD_MAX = 2
TAGS_BYTES_MAX = TAG_BYTES * HELD_MAX

NO_KEY = PresharedKey(bytes(KEY_BYTES))  # what WireGuard takes for none, see wg(8)

Tags: TypeAlias = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SharedKey:
    """A key of a pair, and when it was agreed (wall clock)."""

    key: PresharedKey
    agreed_at: int

    @property
    def tag(self) -> bytes:
        """Its name to the other end.  It tells the key to nobody."""
        return fingerprint(self.key, size=TAG_BYTES, person=b"meshd.psktag")


@dataclass(frozen=True, slots=True)
class Keyring:
    """What one end keeps of a pair: on disk, too."""

    held: tuple[SharedKey, ...] = ()  # newest first
    used: SharedKey | None = None
    used_since: int = 0  # wall clock


@dataclass(frozen=True, slots=True)
class Transcript:
    """What one agreement said."""

    mesh: MeshId
    lower: NodeId
    higher: NodeId
    reference: bytes
    public: bytes
    ciphertext: bytes


def derive(
    transcript: Transcript, *, secret: bytes, static: bytes, previous: SharedKey | None
) -> PresharedKey:
    """Return the key of an agreement: keyed BLAKE2b under the KEM's secret.

    `static` is the X25519 secret of the two node keys.
    """
    hasher = hashlib.blake2b(key=secret, digest_size=KEY_BYTES, person=b"meshd.psk")
    for part in (
        static,
        NO_KEY if previous is None else previous.key,
        transcript.mesh,
        transcript.lower,
        transcript.higher,
        transcript.reference,
        transcript.public,
        transcript.ciphertext,
    ):
        hasher.update(len(part).to_bytes(4, "big"))
        hasher.update(part)
    return PresharedKey(hasher.digest())


def tags_of(held: tuple[SharedKey, ...]) -> Tags:
    """Return the list that is told."""
    return tuple(key.tag for key in held)


def join_tags(tags: Tags) -> bytes:
    """Return a list as it is sent."""
    return b"".join(tags)


def split_tags_untrusted(joined: bytes) -> Tags:
    """Undo `join_tags`."""
    if len(joined) > TAGS_BYTES_MAX or len(joined) % TAG_BYTES:
        raise BadPacket("list of pre-shared keys malformed")
    return tuple(joined[at : at + TAG_BYTES] for at in range(0, len(joined), TAG_BYTES))


def tag_in_use(lower: Tags, higher: Tags) -> bytes | None:
    """Return the tag of the key to use, by rule 2."""
    return next((tag for tag in lower if tag in higher), None)
