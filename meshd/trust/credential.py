"""Credentials: who may be a member, under which name, and what it may say.

A credential is a statement by an issuer about a subject.  A chain of them leads from the mesh key
to a node, and everybody who knows the mesh id can verify it offline:

    mesh key ──signs──▶ a (admit) ──signs──▶ b (admit) ──signs──▶ c
               chain[0]             chain[1]             chain[2]      at most CHAIN_LENGTH_MAX

Rule 1: the mesh key signs the first link; each next one is signed by the subject of the one
        before, which must have `admit`.  The last subject is the node the chain speaks for.

Rule 2: each link may only narrow.  Routes lie within a route of the issuer's; tags are among the
        issuer's, unless it holds `*`; `admit` and `relay` need the issuer's own; no link outlives
        its issuer.  The mesh key may grant everything.  Names and pins are not narrowed: whoever
        may admit may give any.

Rule 3: `issued_at` falls into the issuer's life, give or take CLOCK_SKEW_MAX.  `admitted_at` is
        the time of first admission, is carried through renewals, and is never after `issued_at`.
        What comes of a date from before the issuer's own admission is said in `line`.

Rule 4: expiry is not part of verification.  Whoever was once admitted stays a member until
        revoked, so a mesh that was off for years comes up; but from `expires_at` (and
        CLOCK_SKEW_MAX) on it may neither admit, nor advertise routes, nor relay.

Rule 5: on whose word the subject is in is said by the chain, and by the line where the chain has
        been replaced: see `line`.

Body:

    1 subject   32 bytes                  7 relay        bool, absent = false
    2 name      str, see grammar          8 admitted_at  time, absent = issued_at
    3 tags      array of str              9 issued_at    time
    4 ipv4      4 bytes, a pin           10 expires_at   time, absent = never
    5 routes    array of networks        11 invite       32 bytes, absent = by no invite
    6 admit     bool, absent = false     64 lifetime     seconds to renew for, absent = 10 less 9
   12 succeeds  32 bytes, its former id  65 line         bytes, absent = nobody: see `line`

The issuer is not in the body: it is known from the place in the chain, and the signature is its.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Protocol

from meshd.codec import Fields, pack, pack_address, pack_network
from meshd.errors import BadPacket
from meshd.keys import KEY_BYTES, InviteId, MeshId, NodeId
from meshd.trust.grammar import (
    ANY_TAG,
    CLOCK_SKEW_MAX,
    ipv4_untrusted,
    name_untrusted,
    tags_untrusted,
    wall_untrusted,
)
from meshd.trust.line import LINE_FIELD, check_line_untrusted, line_untrusted
from meshd.trust.signed import (
    Statement,
    open_untrusted,
    sign,
    split_untrusted,
    verify_signature_untrusted,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address

    from meshd.codec import IPNetwork
    from meshd.keys import MeshKey, NodeKey

CREDENTIAL_BYTES_MAX = 320
ADMISSION_BYTES_MAX = 256  # of a first one: renewals and grants add two dates and a line, 63 bytes
CHAIN_LENGTH_MAX = 4
CHAIN_BYTES_MAX = 704  # leaves 296 bytes of a record for what the node says itself
GRANTED_ROUTES_MAX = 8
VERIFIED_MAX = 4096  # credentials a cache remembers; most chains share their first links


class Grants(Protocol):
    """What a credential gives, or an invite promises."""

    @property
    def tags(self) -> tuple[str, ...]:
        """Groups the subject belongs to, for policy."""

    @property
    def routes(self) -> tuple[IPNetwork, ...]:
        """Networks the subject may advertise, each with all inside it."""

    @property
    def admit(self) -> bool:
        """Whether the subject may admit, renew and revoke."""

    @property
    def relay(self) -> bool:
        """Whether the subject may relay for others."""


@dataclass(frozen=True, slots=True)
class Credential:
    """One link of a chain."""

    issuer: MeshId | NodeId
    subject: NodeId
    name: str
    tags: tuple[str, ...] = ()
    ipv4: IPv4Address | None = None  # the pinned address
    routes: tuple[IPNetwork, ...] = ()
    admit: bool = False
    relay: bool = False
    admitted_at: int = 0
    issued_at: int = 0
    expires_at: int = 0  # 0 = never
    invite: InviteId | None = None
    lifetime: int = 0  # what a renewal gives, in seconds; 0 = as long as this one was given
    line: tuple[bytes, ...] = ()  # short ids of those on whose word it is, beyond its chain
    succeeds: NodeId | None = None  # the id that this member had before: see `lineage`

    @property
    def renewed_lifetime(self) -> int:
        """How long a renewal lives that its issuer's own end does not cut short; 0 = for ever."""
        if not self.expires_at:
            return 0
        return self.lifetime or max(1, self.expires_at - self.issued_at)

    def expired(self, wall: float) -> bool:
        """Whether its privileges have ended, by a clock that may be wrong by CLOCK_SKEW_MAX."""
        return self.expires_at != 0 and wall > self.expires_at + CLOCK_SKEW_MAX


class UnknownRoot(BadPacket):
    """No root known here has signed this: it is forged, or under a root that is yet to be known."""


class CredentialCache:
    """Credentials whose signature has been verified, so that it is verified once.

    It also knows which `roots` a chain may start from, the likeliest first; none stands for the
    mesh id alone.  Whether a root has ended is not asked here (`ledger`).

    The key is everything the signature depends on, compared byte by byte; only what has verified
    goes in.  When full, the oldest goes.
    """

    def __init__(self, *, entries_max: int = VERIFIED_MAX) -> None:
        assert entries_max > 0
        self.roots: tuple[MeshId, ...] = ()
        self._entries_max = entries_max
        self._verified: dict[tuple[MeshId, bytes, bytes], Credential] = {}

    def __len__(self) -> int:
        return len(self._verified)

    def open_untrusted(self, blob: bytes, mesh: MeshId, issuer: MeshId | NodeId) -> Credential:
        """Return the credential in a blob that its issuer has signed, or raise BadPacket."""
        key = (mesh, issuer, blob)
        credential = self._verified.get(key)
        if credential is not None:
            return credential
        split_untrusted(blob, bytes_max=CREDENTIAL_BYTES_MAX)
        body = open_untrusted(Statement.CREDENTIAL, mesh, issuer, blob)
        credential = _decode_untrusted(body, issuer)
        if len(self._verified) >= self._entries_max:
            del self._verified[next(iter(self._verified))]
        self._verified[key] = credential
        return credential

    def open_first_untrusted(self, blob: bytes, mesh: MeshId) -> Credential:
        """Return the first credential of a chain, which a root has signed, or raise BadPacket."""
        roots = self.roots or (mesh,)
        for root in roots:
            credential = self._verified.get((mesh, root, blob))
            if credential is not None:
                return credential
        signature, body = split_untrusted(blob, bytes_max=CREDENTIAL_BYTES_MAX)
        root = verify_root_untrusted(Statement.CREDENTIAL, mesh, body, signature, self)
        return self.open_untrusted(blob, mesh, root)


def issue(credential: Credential, key: NodeKey | MeshKey, mesh: MeshId) -> bytes:
    """Sign a credential with its issuer's key.

    Whether the issuer may grant it is checked by those who verify; ask `excess` and the length
    against CREDENTIAL_BYTES_MAX before handing it out.
    """
    assert credential.issuer == key.id
    return sign(Statement.CREDENTIAL, mesh, key, _encode(credential))


def founding_credential(subject: NodeId, name: str, mesh: MeshId, wall: int) -> Credential:
    """Return the credential that gives everything the mesh key can give, without end."""
    return Credential(
        issuer=mesh,
        subject=subject,
        name=name,
        tags=(ANY_TAG,),
        routes=(IPv4Network("0.0.0.0/0"), IPv6Network("::/0")),
        admit=True,
        relay=True,
        admitted_at=wall,
        issued_at=wall,
    )


def verify_chain_untrusted(
    chain: Sequence[bytes], mesh: MeshId, subject: NodeId, cache: CredentialCache
) -> tuple[Credential, ...]:
    """Return the credentials of a chain that speaks for `subject`, a root's first.

    The issuer of the first is that root, of those that the cache knows.
    """
    if not 1 <= len(chain) <= CHAIN_LENGTH_MAX:
        raise BadPacket("chain too long or empty")
    if sum(len(blob) for blob in chain) > CHAIN_BYTES_MAX:
        raise BadPacket("chain has too many bytes")
    credentials: list[Credential] = []
    for blob in chain:
        if credentials:
            credential = cache.open_untrusted(blob, mesh, credentials[-1].subject)
        else:
            credential = cache.open_first_untrusted(blob, mesh)
        if credential.admitted_at > credential.issued_at:
            raise BadPacket("credential admitted after it was issued")
        if credentials:
            _check_link_untrusted(credentials[-1], credential)
        check_line_untrusted(credential, credentials)
        credentials.append(credential)
    if credentials[-1].subject != subject:
        raise BadPacket("credential of another subject")
    return tuple(credentials)


def verify_root_untrusted(
    kind: Statement, mesh: MeshId, body: bytes, signature: bytes, cache: CredentialCache
) -> MeshId:
    """Return the root that has signed a body; raise UnknownRoot if none has that is known."""
    for root in cache.roots or (mesh,):
        try:
            verify_signature_untrusted(kind, mesh, root, body, signature)
        except BadPacket:
            continue
        return root
    raise UnknownRoot("bad signature")


def verify_admitter_untrusted(
    chain: Sequence[bytes], mesh: MeshId, signer: NodeId, dated: int, cache: CredentialCache
) -> tuple[Credential, ...]:
    """Return the chain of a signer that had `admit` when it dated a statement."""
    credentials = verify_chain_untrusted(chain, mesh, signer, cache)
    if not credentials[-1].admit:
        raise BadPacket("signer may not admit")
    if credentials[-1].expired(dated):
        raise BadPacket("signer had expired")
    return credentials


def excess(holder: Credential, granted: Grants) -> str | None:
    """Return what the holder of a credential may not grant, or None if it may grant all of it."""
    if not holder.admit:
        return "admit is needed to grant anything"
    if granted.relay and not holder.relay:
        return "relay exceeds the issuer's"
    if ANY_TAG not in holder.tags and not set(granted.tags) <= set(holder.tags):
        return "tags exceed the issuer's"
    if not all(covered(route, holder.routes) for route in granted.routes):
        return "routes exceed the issuer's"
    return None


def covered(route: IPNetwork, routes: Sequence[IPNetwork]) -> bool:
    """Whether a network lies within one of several."""
    return any(_within(route, wide) for wide in routes)


def _within(route: IPNetwork, wide: IPNetwork) -> bool:
    if isinstance(route, IPv4Network) and isinstance(wide, IPv4Network):
        return route.subnet_of(wide)
    if isinstance(route, IPv6Network) and isinstance(wide, IPv6Network):
        return route.subnet_of(wide)
    return False


def _check_link_untrusted(issuer: Credential, link: Credential) -> None:
    reason = excess(issuer, link)
    if reason is not None:
        raise BadPacket(f"credential widens: {reason}")
    if link.issued_at < issuer.issued_at - CLOCK_SKEW_MAX:
        raise BadPacket("credential older than its issuer's")
    if issuer.expires_at == 0:
        return
    if link.expires_at == 0 or link.expires_at > issuer.expires_at:
        raise BadPacket("credential outlives its issuer's")
    if link.issued_at > issuer.expires_at + CLOCK_SKEW_MAX:
        raise BadPacket("credential issued by an expired issuer")


def _encode(credential: Credential) -> bytes:
    body: dict[int, object] = {1: bytes(credential.subject), 2: credential.name}
    if credential.tags:
        body[3] = credential.tags
    if credential.ipv4 is not None:
        body[4] = pack_address(credential.ipv4)
    if credential.routes:
        body[5] = tuple(pack_network(route) for route in credential.routes)
    if credential.admit:
        body[6] = True
    if credential.relay:
        body[7] = True
    if credential.admitted_at != credential.issued_at:
        body[8] = credential.admitted_at
    body[9] = credential.issued_at
    if credential.expires_at:
        body[10] = credential.expires_at
    if credential.invite is not None:
        body[11] = bytes(credential.invite)
    if credential.succeeds is not None:
        body[12] = bytes(credential.succeeds)
    if credential.lifetime:
        body[64] = credential.lifetime
    if credential.line:
        body[LINE_FIELD] = b"".join(credential.line)
    return pack(body)


def _decode_untrusted(body: bytes, issuer: MeshId | NodeId) -> Credential:
    fields = Fields.unpack_untrusted(body, what="credential")
    issued_at = wall_untrusted(fields, 9)
    credential = Credential(
        issuer=issuer,
        subject=NodeId(fields.blob(1, size=KEY_BYTES)),
        name=name_untrusted(fields, 2),
        tags=tags_untrusted(fields, 3),
        ipv4=ipv4_untrusted(fields, 4),
        routes=fields.networks(5, count_max=GRANTED_ROUTES_MAX),
        admit=fields.flag(6),
        relay=fields.flag(7),
        admitted_at=wall_untrusted(fields, 8, default=issued_at),
        issued_at=issued_at,
        expires_at=wall_untrusted(fields, 10, default=0),
        invite=InviteId(fields.blob(11, size=KEY_BYTES)) if fields.has(11) else None,
        lifetime=wall_untrusted(fields, 64, default=0),
        line=line_untrusted(fields),
        succeeds=NodeId(fields.blob(12, size=KEY_BYTES)) if fields.has(12) else None,
    )
    fields.done()
    return credential
