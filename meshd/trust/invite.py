"""Invites, and the tokens that carry them.

An invite is a promise, signed by a member with `admit`, of what whoever holds its key will be
granted.  It is no credential: any member that may admit turns it into one (`admission`), within
what both the inviter and itself may grant.

Invite body:

    1 id           32 bytes, public half of the invite key    7 ipv4      4 bytes, a pin
    2 issuer       32 bytes, the inviter                      8 routes    array of networks
    3 expires_at   time, always given                         9 admit     bool, absent = false
    4 uses         uint, absent = 1, 0 = without limit       10 relay     bool, absent = false
    5 name         str, absent = the joiner chooses          11 lifetime  seconds of the credential,
    6 tags         array of str                                           absent = as its issuer's

A token is all that a new machine needs, as text:

    meshd1.  base64url without padding of ( token body ‖ check )

    1 mesh           32 bytes                4 invite_key   32 bytes, the private seed
    2 bootstrap_key  32 bytes                5 invite       blob
    3 seeds          array of "host:port"    6 ipv4_prefix  5 bytes

The 4 bytes of `check` are a hash of the body.  They tell a token that was cut short or mistyped
from one that is simply not accepted; they prove nothing.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from meshd.codec import Fields, network_untrusted, pack, pack_address, pack_network
from meshd.errors import BadPacket, UsageError
from meshd.keys import KEY_BYTES, BootstrapKey, InviteId, InviteKey, MeshId, NodeId, fingerprint
from meshd.trust.credential import GRANTED_ROUTES_MAX
from meshd.trust.grammar import ipv4_untrusted, name_untrusted, tags_untrusted, wall_untrusted
from meshd.trust.roots import Roots
from meshd.trust.signed import Statement, sign, split_untrusted, verify_signature_untrusted
from meshd.trust.succession import ROOTS_MAX

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from meshd.codec import IPNetwork
    from meshd.keys import NodeKey

INVITE_BYTES_MAX = 384
USES_MAX = 2**16 - 1
SEEDS_MAX = 4
SEED_BYTES_MAX = 128
TOKEN_TEXT_MAX = 1600
_CHECK_BYTES = 4
_PREFIX = re.compile(r"meshd([0-9]{1,3})\.")
_VERSION = "1"
_SEED = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Invite:
    """See the module docstring."""

    id: InviteId
    issuer: NodeId
    expires_at: int
    uses: int = 1  # 0 = without limit
    name: str = ""  # empty = the joiner chooses
    tags: tuple[str, ...] = ()
    ipv4: IPv4Address | None = None
    routes: tuple[IPNetwork, ...] = ()
    admit: bool = False
    relay: bool = False
    lifetime: int = 0  # seconds; 0 = as long as its issuer's


@dataclass(frozen=True, slots=True)
class Token:
    """See the module docstring.  Whoever has one can join: treat it as a password."""

    mesh: MeshId
    bootstrap_key: BootstrapKey
    seeds: tuple[str, ...]
    invite_key: InviteKey = field(compare=False)  # the invite names it
    invite: bytes = field(repr=False)
    ipv4_prefix: IPv4Network
    open_mesh: bool = False  # the mesh began with a secret, and has not been sealed since
    root: MeshId | None = None  # the newest; None = the mesh id itself
    root_number: int = 0

    @property
    def roots(self) -> Roots:
        """The line of roots that whoever joins by it begins with."""
        if self.root is None:
            return Roots.first(self.mesh)
        return Roots(self.mesh, self.root, self.root_number)


def sign_invite(invite: Invite, key: NodeKey, mesh: MeshId) -> bytes:
    """Return the blob of an invite.  Raise UsageError if it promises more than fits."""
    assert invite.issuer == key.id
    body: dict[int, object] = {
        1: bytes(invite.id),
        2: bytes(invite.issuer),
        3: invite.expires_at,
    }
    if invite.uses != 1:
        body[4] = invite.uses
    if invite.name:
        body[5] = invite.name
    if invite.tags:
        body[6] = invite.tags
    if invite.ipv4 is not None:
        body[7] = pack_address(invite.ipv4)
    if invite.routes:
        body[8] = tuple(pack_network(route) for route in invite.routes)
    if invite.admit:
        body[9] = True
    if invite.relay:
        body[10] = True
    if invite.lifetime:
        body[11] = invite.lifetime
    blob = sign(Statement.INVITE, mesh, key, pack(body))
    if len(blob) > INVITE_BYTES_MAX:
        raise UsageError(
            f"invite: it would have {len(blob)} bytes, {INVITE_BYTES_MAX} are allowed; "
            "give it fewer or shorter tags and routes"
        )
    return blob


def open_invite_untrusted(blob: bytes, mesh: MeshId) -> Invite:
    """Return an invite that its issuer has signed, or raise BadPacket.

    Whether the issuer is a member at all is for `admission` to ask.
    """
    signature, body = split_untrusted(blob, bytes_max=INVITE_BYTES_MAX)
    fields = Fields.unpack_untrusted(body, what="invite")
    invite = Invite(
        id=InviteId(fields.blob(1, size=KEY_BYTES)),
        issuer=NodeId(fields.blob(2, size=KEY_BYTES)),
        expires_at=wall_untrusted(fields, 3),
        uses=fields.uint(4, maximum=USES_MAX, default=1),
        name=name_untrusted(fields, 5, default=""),
        tags=tags_untrusted(fields, 6),
        ipv4=ipv4_untrusted(fields, 7),
        routes=fields.networks(8, count_max=GRANTED_ROUTES_MAX),
        admit=fields.flag(9),
        relay=fields.flag(10),
        lifetime=wall_untrusted(fields, 11, default=0),
    )
    fields.done()
    verify_signature_untrusted(Statement.INVITE, mesh, invite.issuer, body, signature)
    return invite


def is_seed(text: str) -> bool:
    """Whether a text is `host:port`, with an IPv6 address in brackets."""
    match = _SEED.fullmatch(text)
    return match is not None and len(text) <= SEED_BYTES_MAX and 0 < int(match[1]) < 2**16


def format_token(token: Token) -> str:
    """Return a token as the text that people copy."""
    body = encode_token(token)
    encoded = base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")
    return f"meshd{_VERSION}.{encoded}"


def encode_token(token: Token) -> bytes:
    """Return the body of a token, for a way that needs no text."""
    assert len(token.seeds) <= SEEDS_MAX
    assert all(is_seed(seed) for seed in token.seeds)
    body: dict[int, object] = {
        1: bytes(token.mesh),
        2: bytes(token.bootstrap_key),
        3: token.seeds,
        4: token.invite_key.seed,
        5: token.invite,
        6: pack_network(token.ipv4_prefix),
    }
    if token.open_mesh:
        body[64] = True
    if token.root is not None:
        body[65] = bytes(token.root)
        body[66] = token.root_number
    return pack(body)


def parse_token_untrusted(text: str) -> Token:
    """Return the token in a text.  The reason of its BadPacket is fit for the operator's eyes."""
    text = text.strip()
    prefix = _PREFIX.match(text)
    if prefix is None:
        raise BadPacket("not a token: it must begin with 'meshd1.'")
    if prefix[1] != _VERSION:
        raise BadPacket("token is of an unknown version: update meshd, or ask for another token")
    body = _checked_body_untrusted(text[prefix.end() :])
    try:
        return decode_token_untrusted(body)
    except BadPacket as exc:
        raise BadPacket("token is malformed: ask for another one") from exc


def _checked_body_untrusted(encoded: str) -> bytes:
    garbled = BadPacket("token is garbled: copy it again, whole")
    if len(encoded) > TOKEN_TEXT_MAX or not encoded.isascii():
        raise garbled
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise garbled from None
    # Base64 has spare bits at the end, and Python's decoder takes `+` and `/` besides `-` and `_`:
    # only the one form that encoding gives is accepted.
    if base64.urlsafe_b64encode(data).decode().rstrip("=") != encoded:
        raise garbled
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if check != _check(body):
        raise garbled
    return body


def decode_token_untrusted(body: bytes) -> Token:
    """Return the token whose body this is, or raise BadPacket."""
    fields = Fields.unpack_untrusted(body, what="token")
    seeds = []
    for seed in fields.items(3, count_max=SEEDS_MAX):
        if not isinstance(seed, str) or not is_seed(seed):
            raise BadPacket("malformed seed")
        seeds.append(seed)
    prefix = network_untrusted(fields.blob(6))
    if not isinstance(prefix, IPv4Network):
        raise BadPacket("not an IPv4 network")
    token = Token(
        mesh=MeshId(fields.blob(1, size=KEY_BYTES)),
        bootstrap_key=BootstrapKey(fields.blob(2, size=KEY_BYTES)),
        seeds=tuple(seeds),
        invite_key=InviteKey(fields.blob(4, size=KEY_BYTES)),
        invite=fields.blob(5, maximum=INVITE_BYTES_MAX),
        ipv4_prefix=prefix,
        open_mesh=fields.flag(64),
        root=MeshId(fields.blob(65, size=KEY_BYTES)) if fields.has(65) else None,
        root_number=fields.uint(66, maximum=ROOTS_MAX - 1, default=0),
    )
    fields.done()
    if (token.root is None) != (token.root_number == 0) or token.root == token.mesh:
        raise BadPacket("root is misnumbered")
    if open_invite_untrusted(token.invite, token.mesh).id != token.invite_key.id:
        raise BadPacket("invite of another key")
    return token


def _check(body: bytes) -> bytes:
    return fingerprint(body, size=_CHECK_BYTES, person=b"meshd.token")
