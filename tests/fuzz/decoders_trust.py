"""Signed statements, tokens, and the ledger that takes them all."""

from fuzz.registry import Target, decoder, signer, statement, target
from meshd.keys import SIGNATURE_BYTES
from meshd.trust.credential import verify_chain_untrusted
from meshd.trust.epoch import open_epoch_untrusted
from meshd.trust.fact import FactKind
from meshd.trust.grant import open_grant_untrusted
from meshd.trust.invite import format_token, open_invite_untrusted, parse_token_untrusted
from meshd.trust.invite_use import open_invite_use_untrusted
from meshd.trust.ledger import Ledger
from meshd.trust.line import line_id
from meshd.trust.node_succession import open_node_succession_untrusted
from meshd.trust.record import open_record_untrusted
from meshd.trust.renewal import renew_untrusted
from meshd.trust.revocation import open_revocation_untrusted
from meshd.trust.roots import Roots
from meshd.trust.signed import Statement
from trust import world as trust

_CHAIN = trust.founding_chain(trust.A)
_CACHE = trust.cache()
_ROOTS = trust.roots_after(trust.succession_blob())
_BY_A = {"key": trust.A, "mesh": trust.MESH}

statement(
    "record",
    lambda blob: open_record_untrusted(blob, trust.MESH, _CACHE),
    lambda: [trust.record_blob(trust.A, _CHAIN), trust.record_blob(trust.A, _CHAIN, candidates=())],
    kind=Statement.RECORD,
    **_BY_A,
)
statement(
    "record-of-a-successor",
    lambda blob: open_record_untrusted(blob, trust.MESH, _CACHE),
    lambda: [
        trust.successor_blob(
            trust.B,
            trust.chain_to(
                trust.B, by=trust.A, through=_CHAIN, name="a", admit=True, succeeds=trust.A.id
            ),
            trust.A,
        )
    ],
    kind=Statement.RECORD,
    key=trust.B,
    mesh=trust.MESH,
)
statement(
    "credential",
    # Without a cache: one that is right is to be looked at as closely as one that is not.
    lambda blob: verify_chain_untrusted((blob,), trust.MESH, trust.A.id, trust.cache()),
    lambda: list(_CHAIN),
    kind=Statement.CREDENTIAL,
    key=trust.MESH_KEY,
    mesh=trust.MESH,
)
statement(
    "revocation",
    lambda blob: open_revocation_untrusted(blob, trust.MESH, _CACHE),
    lambda: [
        trust.revocation_blob(trust.B),
        trust.revocation_blob(trust.B, by=trust.A, chain=_CHAIN),
    ],
    kind=Statement.REVOCATION,
    **_BY_A,
)
statement(
    "invite",
    lambda blob: open_invite_untrusted(blob, trust.MESH),
    lambda: [trust.invite_blob(trust.A, tags=("db",)), trust.invite_blob(trust.A)],
    kind=Statement.INVITE,
    **_BY_A,
)
statement(
    "invite-use",
    lambda blob: open_invite_use_untrusted(blob, trust.MESH, _CACHE),
    lambda: [trust.use_blob(trust.B, by=trust.A, chain=_CHAIN)],
    kind=Statement.INVITE_USE,
    **_BY_A,
)


@target("chain")
def _chain():
    """Two links, of which the second is signed by a member gone bad."""
    return Target(
        lambda blob: verify_chain_untrusted((*_CHAIN, blob), trust.MESH, trust.B.id, trust.cache()),
        [_link(), _link(line=(line_id(trust.C.id), line_id(trust.D.id)))],
        SIGNATURE_BYTES,
        signer(Statement.CREDENTIAL, trust.A, trust.MESH),
    )


@target("origin")
def _origin():
    """What a member shows that asks for a renewal: a chain that one gone bad has signed."""
    record = trust.record_blob(trust.B, (*_CHAIN, _link()))
    ledger = trust.ledger_of(trust.record(trust.record_blob(trust.A, _CHAIN)), trust.record(record))
    return Target(
        lambda blob: renew_untrusted(
            ledger,
            trust.B.id,
            key=trust.A,
            chain=_CHAIN,
            wall=trust.WALL + 5,
            shown=(*_CHAIN, blob),
        ),
        [_link(), _link(line=(line_id(trust.C.id),), admitted_at=trust.WALL - 5)],
        SIGNATURE_BYTES,
        signer(Statement.CREDENTIAL, trust.A, trust.MESH),
    )


def _link(**fields):
    grants = {"name": "b", "tags": ("db",), "expires_at": trust.WALL + 9} | fields
    return trust.chain_to(trust.B, by=trust.A, through=_CHAIN, **grants)[-1]


statement(
    "succession",
    lambda blob: Roots.first(trust.MESH).grown_untrusted((blob,)),
    lambda: [trust.succession_blob(), trust.succession_blob(overlap_until=trust.WALL + 9)],
    kind=Statement.SUCCESSION,
    key=trust.MESH_KEY,
    mesh=trust.MESH,
)
decoder(
    "roots",
    lambda data: Roots.decode_untrusted(data, trust.MESH),
    lambda: [
        Roots.first(trust.MESH).encode(),
        trust.roots_after(trust.succession_blob()).encode(),
    ],
    encode=Roots.encode,
)


def _grant(blob):
    cache = trust.cache()
    cache.roots = (trust.ROOT_KEY.id, trust.MESH)
    return open_grant_untrusted(blob, trust.MESH, _ROOTS, cache)


statement(
    "grant",
    _grant,
    lambda: [trust.grant_blob(trust.A, _CHAIN)],
    kind=Statement.CREDENTIAL,
    key=trust.ROOT_KEY,
    mesh=trust.MESH,
)
statement(
    "bootstrap-epoch",
    lambda blob: open_epoch_untrusted(blob, trust.MESH, _CACHE),
    lambda: [
        trust.epoch_blob(trust.BOOTSTRAP_KEY),
        trust.epoch_blob(trust.BOOTSTRAP_KEY, by=trust.A, chain=_CHAIN),
    ],
    kind=Statement.BOOTSTRAP_EPOCH,
    **_BY_A,
)


statement(
    "node-succession",
    lambda blob: open_node_succession_untrusted(blob, trust.MESH),
    lambda: [
        trust.node_succession(trust.A, trust.B).blob,
        trust.node_succession(trust.A, trust.B, kept=(bytes(8), b"k" * 8)).blob,
    ],
    kind=Statement.NODE_SUCCESSION,
    **_BY_A,
)


_SEALED = Ledger(trust.MESH, roots=_ROOTS)


def _late(blob):
    """A record of a node that may not have heard that the mesh was sealed."""
    return _SEALED.successions_since_untrusted(blob), _SEALED.has_ended_untrusted(blob)


statement(
    "record-in-a-sealed-mesh",
    _late,
    lambda: [trust.record_blob(trust.A, _CHAIN)],
    kind=Statement.RECORD,
    **_BY_A,
)


@target("ledger")
def _ledger():
    ledger = Ledger(trust.MESH)
    kinds = list(FactKind)
    record, revocation = trust.record_blob(trust.A, _CHAIN), trust.revocation_blob(trust.B)
    use = trust.use_blob(trust.B, by=trust.A, chain=_CHAIN)

    def decode(blob):
        kind = kinds[len(blob) % len(kinds)]
        return ledger.merge_untrusted(kind, blob, trust.WALL)

    return Target(
        decode,
        [record, revocation, use],
        SIGNATURE_BYTES,
        signer(Statement.RECORD, trust.A, trust.MESH),
    )


decoder(
    "token",
    lambda data: parse_token_untrusted(data.decode("latin-1")),
    lambda: [format_token(trust.token()).encode(), format_token(trust.token(seeds=())).encode()],
)
