"""One small mesh to test with: fixed keys, a fixed time, and short ways to make statements."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from meshd.keys import BootstrapKey, InviteKey, MeshKey, NodeKey, WireGuardKey
from meshd.trust.credential import (
    Credential,
    CredentialCache,
    founding_credential,
    issue,
    verify_chain_untrusted,
)
from meshd.trust.epoch import BootstrapEpoch, bootstrap_fingerprint, sign_epoch
from meshd.trust.fact import FactKind
from meshd.trust.grant import sign_grant
from meshd.trust.invite import Invite, Token, sign_invite
from meshd.trust.invite_use import InviteUse, sign_invite_use
from meshd.trust.ledger import Ledger
from meshd.trust.node_succession import sign_former_word, sign_node_succession
from meshd.trust.record import Candidate, CandidateKind, Record, sign_record
from meshd.trust.revocation import Revocation, sign_revocation
from meshd.trust.roots import Roots
from meshd.trust.succession import Succession, open_succession_untrusted, sign_succession

WALL = 1_700_000_000
HOUR = 3600
YEAR = 365 * 86400

MESH_KEY = MeshKey(b"M" * 32)
MESH = MESH_KEY.id
ROOT_KEY = MeshKey(b"R" * 32)  # follows the mesh key where a test says so
OTHER_MESH_KEY = MeshKey(b"O" * 32)
A, B, C, D, E, F = (NodeKey(bytes([letter]) * 32) for letter in b"abcdef")
INVITE_KEY = InviteKey(b"i" * 32)
BOOTSTRAP_KEY = BootstrapKey(b"b" * 32)
WIREGUARD_KEY = WireGuardKey(b"w" * 32)
PREFIX = IPv4Network("100.64.0.0/10")

HOST = Candidate(CandidateKind.HOST, IPv4Address("192.0.2.1"), 51820)
HOST6 = Candidate(CandidateKind.HOST, IPv6Address("2001:db8::1"), 51820)


def founding_chain(key, name="a", *, mesh_key=MESH_KEY, wall=WALL):
    credential = founding_credential(key.id, name, mesh_key.id, wall)
    return (issue(credential, mesh_key, mesh_key.id),)


def chain_to(key, *, by, through, name, **grants):
    """Extend the chain `through`, whose node is `by`, to another node."""
    defaults = {"admitted_at": WALL, "issued_at": WALL}
    credential = Credential(by.id, key.id, name, **(defaults | grants))
    return (*through, issue(credential, by, MESH))


def record_blob(key, chain, *, mesh=MESH, **fields):
    defaults = {
        "sequence": 1,
        "wireguard_key": WIREGUARD_KEY,
        "candidates": (HOST, HOST6),
        "ipv4": IPv4Address("100.64.1.1"),
        "version": "0.1.0",
    }
    return sign_record(Record(node=key.id, chain=chain, **(defaults | fields)), key, mesh)


def revocation_blob(subject, *, by=MESH_KEY, chain=(), cascade=False, revoked_at=WALL):
    return sign_revocation(Revocation(subject.id, by.id, cascade, revoked_at, chain), by, MESH)


def invite_blob(by, *, key=INVITE_KEY, expires_at=WALL + HOUR, mesh=MESH, **grants):
    return sign_invite(Invite(key.id, by.id, expires_at, **grants), by, mesh)


def use_blob(subject, *, by, chain, invite=INVITE_KEY, used_at=WALL, uses=1):
    subject_id = None if subject is None else subject.id
    use = InviteUse(invite.id, subject_id, used_at, by.id, uses, chain)
    return sign_invite_use(use, by, MESH)


def succession_blob(before=MESH_KEY, after=ROOT_KEY, *, number=1, overlap_until=0, **fields):
    succession = Succession(number, before.id, after.id, WALL, overlap_until, **fields)
    return sign_succession(succession, before, after, MESH)


def grant_blob(key, chain, *, by=ROOT_KEY, wall=WALL):
    """Return what a root grants a node that has a chain."""
    credentials = verify_chain_untrusted(chain, MESH, key.id, CredentialCache())
    return sign_grant(credentials, by, MESH, wall)


def epoch_blob(bootstrap_key, *, by=ROOT_KEY, maker=None, number=1, chain=()):
    maker = (maker or by).id if chain else (maker or A).id
    epoch = BootstrapEpoch(number, bootstrap_fingerprint(bootstrap_key, MESH), maker, WALL, chain)
    return sign_epoch(epoch, by, MESH)


def successor_blob(key, chain, former, *, dated=WALL, **fields):
    """Return the record of one that goes on in the place of another id."""
    word = sign_former_word(former, key.id, MESH, dated)
    return record_blob(key, chain, former_word=word, **fields)


def node_succession(former, node, *, dated=WALL, kept=()):
    return sign_node_succession(former, node, MESH, dated=dated, kept=kept)


def roots_after(*blobs, settled=True):
    """Return the line of roots that these successions make."""
    roots = Roots.first(MESH)
    for blob in blobs:
        roots = roots.grown(open_succession_untrusted(blob, MESH))
    return roots.settle() if settled else roots


def token(**fields):
    default = Token(
        mesh=MESH,
        bootstrap_key=BOOTSTRAP_KEY,
        seeds=("192.0.2.1:51820", "[2001:db8::1]:51820", "seed.example.org:51820"),
        invite_key=INVITE_KEY,
        invite=invite_blob(A, lifetime=YEAR),
        ipv4_prefix=PREFIX,
    )
    return replace(default, **fields)


def ledger_of(*facts, **bounds):
    """Return a ledger that was given (kind, blob) pairs."""
    ledger = Ledger(MESH, **bounds)
    for kind, blob in facts:
        ledger.merge_untrusted(kind, blob, WALL)
    return ledger


def record(blob):
    return FactKind.RECORD, blob


def revocation(blob):
    return FactKind.REVOCATION, blob


def use(blob):
    return FactKind.INVITE_USE, blob


def succession(blob):
    return FactKind.SUCCESSION, blob


def grant(blob):
    return FactKind.GRANT, blob


def epoch(blob):
    return FactKind.BOOTSTRAP_EPOCH, blob


def followed(former, node, **fields):
    return FactKind.NODE_SUCCESSION, node_succession(former, node, **fields).blob


def cache():
    return CredentialCache()
