"""From configuration and state to an identity: which mesh this node is in, and as whom.

| state on disk | configuration         | result                                                  |
| ------------- | --------------------- | ------------------------------------------------------- |
| of a mesh     | anything or nothing   | that mesh; a secret or token of another one is an error |
|               | a token of that mesh  | the same, and shown where rights are gone: see `entry`  |
| none          | `--init`              | a new mesh, founded by this node                        |
| none          | a secret              | the mesh of that secret, by a credential of our own     |
| none          | a token               | no member yet: the token has to be shown to a seed      |
| none          | `--ask-approval`      | see `asking`, which ends with a token                   |
| none          | nothing               | a usage error that names the ways                       |

Before `remember`, nothing is written that outlives a start which fails or is refused.  What a run
that is killed leaves behind, its keys and its interface, is used by the next one.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from meshd.codec import Fields, pack
from meshd.daemon.roots import load_roots, save_roots
from meshd.daemon.rotation import load_keys
from meshd.engine.config import Memory
from meshd.engine.identity import Identity
from meshd.errors import BadPacket, StartError, UsageError
from meshd.keys import KEY_BYTES, BootstrapKey, MeshKey, WireGuardPrivateKey
from meshd.store import Counter, Meta, Secret
from meshd.trust.credential import (
    CHAIN_LENGTH_MAX,
    CREDENTIAL_BYTES_MAX,
    founding_credential,
    issue,
)
from meshd.trust.invite import parse_token_untrusted
from meshd.trust.secret import derive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.config import Config
    from meshd.keys import MeshId
    from meshd.store import Store
    from meshd.trust.invite import Token

# A record's sequence is the number of starts and, below it, a count within the run (docs/adr/0003).
SEQUENCE_SHIFT = 20

SEEDS_KEPT_MAX = 64

# Options that are settled and accepted, so that a configuration need not change with the version.
NOT_YET = {
    "advertise": "routing networks behind a node",
    "mdns": "finding members on the LAN",
}

FIRST_START = """\
this machine is in no mesh yet; say how it gets into one:
  meshd --init                                  make a new mesh
  meshd --token-file FILE                       join with a token from `meshctl invite`
  meshd --secret-file FILE [--seed HOST:PORT]   join, or make, the mesh of a passphrase
  meshd --ask-approval --seed HOST:PORT         show a code that a member's operator approves"""


@dataclass(frozen=True, slots=True)
class Start:
    """What a run begins with."""

    identity: Identity
    mesh_key: MeshKey | None  # only where this run has made the mesh
    memory: Memory
    seeds: tuple[str, ...]  # given, or else those of earlier runs
    remembered: bool  # the identity is on disk


def begin(config: Config, store: Store, wall: float) -> Start:
    """Decide which mesh this node is in.  Raise UsageError, StartError or StoreError."""
    token = _token(config)
    keys = derive(config.secret) if config.secret is not None else None
    mesh = store.mesh
    if mesh is not None:
        given = token.mesh if token is not None else keys[0].id if keys is not None else mesh
        store.bind(given)
        start = _resume(config, store, mesh, wall)
        return replace(start, identity=replace(start.identity, token=token))
    if token is None and keys is None and not config.init:
        raise UsageError(FIRST_START)
    wireguard_key = _first_wireguard_key(store)
    if token is not None:
        identity = Identity(
            mesh=token.mesh,
            node_key=store.node_key,
            wireguard_key=wireguard_key,
            bootstrap_key=token.bootstrap_key,
            name=config.name,
            ipv4_prefix=token.ipv4_prefix,
            token=token,
            open_mesh=token.open_mesh,
            pinned=token.roots,
        )
        seeds = tuple(dict.fromkeys((*_given_seeds(config), *token.seeds)))
        return Start(identity, None, _first_memory(), seeds, remembered=False)
    if keys is None:
        keys = MeshKey(os.urandom(KEY_BYTES)), BootstrapKey(os.urandom(KEY_BYTES))
    mesh_key, bootstrap_key = keys
    credential = founding_credential(store.node_key.id, config.name, mesh_key.id, int(wall))
    identity = Identity(
        mesh=mesh_key.id,
        node_key=store.node_key,
        wireguard_key=wireguard_key,
        bootstrap_key=bootstrap_key,
        name=config.name,
        ipv4_prefix=config.ipv4_prefix,
        chain=(issue(credential, mesh_key, mesh_key.id),),
        open_mesh=config.secret is not None,
    )
    made = mesh_key if config.init and config.secret is None else None
    return Start(identity, made, _first_memory(), _given_seeds(config), remembered=False)


def remember(store: Store, start: Start, identity: Identity) -> None:
    """Put an identity on disk for the first time.  Raise StartError or StoreError."""
    with store.together():
        store.bind(identity.mesh)
        store.save_secret(Secret.WIREGUARD_KEY, bytes(identity.wireguard_key))
        if start.mesh_key is not None:
            store.save_secret(Secret.MESH_KEY, start.mesh_key.seed)
        store.reserve_sequence(Counter.STARTS, 1, above=start.memory.sequence >> SEQUENCE_SHIFT)
        store.reserve_sequence(Counter.INCARNATION, 1, above=start.memory.incarnation)
        store.save_meta(Meta.SEEDS, pack({1: start.seeds}))
        _save(store, identity)


def update(store: Store, identity: Identity) -> None:
    """Keep what the mesh has granted or taught us.  Raise StoreError."""
    with store.together():
        _save(store, identity)


def _save(store: Store, identity: Identity) -> None:
    save_roots(store, identity)
    words = (identity.former_word,) if identity.former_word else ()
    store.save_meta(Meta.CHAIN, pack({1: identity.chain, 64: identity.origin, 65: words}))
    store.save_meta(Meta.NAME, identity.name.encode())
    store.save_meta(Meta.IPV4_PREFIX, str(identity.ipv4_prefix).encode())
    store.save_meta(Meta.OPEN_MESH, b"1" if identity.open_mesh else b"0")


def _token(config: Config) -> Token | None:
    if config.token is None:
        return None
    try:
        return parse_token_untrusted(config.token)
    except BadPacket as exc:
        where = f"{config.token_file}: " if config.token_file is not None else ""
        raise UsageError(f"{where}{exc.reason}") from exc


def remarks(config: Config, start: Start) -> Iterator[str]:
    """Say what was asked for and is not done: it is yet to come, or the mesh has decided before."""
    for field, what in NOT_YET.items():
        if field in config.given:
            yield f"--{field.replace('_', '-')} has no effect yet: {what} comes in a later version"
    identity = start.identity
    if not start.remembered:
        return
    if config.secret is not None and not identity.open_mesh:
        yield "the secret is of no use any more: the mesh is sealed, and admits by tokens alone"
    if "name" in config.given and config.name != identity.name:
        yield (
            f"the name stays {identity.name}, with which the mesh has admitted this node; "
            f"{config.name} is not used"
        )
    if "ipv4_prefix" in config.given and config.ipv4_prefix != identity.ipv4_prefix:
        yield f"the mesh has the network {identity.ipv4_prefix}; {config.ipv4_prefix} is not used"


def _first_wireguard_key(store: Store) -> WireGuardPrivateKey:
    """Return the key that a run which was killed has begun with, or a new one."""
    begun = store.load_secret(Secret.WIREGUARD_KEY)
    if begun is not None:
        return WireGuardPrivateKey(begun)
    key = WireGuardPrivateKey(os.urandom(KEY_BYTES))
    store.save_secret(Secret.WIREGUARD_KEY, bytes(key), provisional=True)
    return key


def _first_memory() -> Memory:
    return Memory(sequence=_first_sequence(1), incarnation=1)


def _first_sequence(starts: int) -> int:
    """Return where a run's sequence numbers begin.

    Not at the very beginning of the block: a restored backup has the same number of starts as the
    run that followed it, and must not sign another body under a number that one has used.
    """
    return (starts << SEQUENCE_SHIFT) + secrets.randbelow(1 << (SEQUENCE_SHIFT - 1))


def _given_seeds(config: Config) -> tuple[str, ...]:
    return tuple(str(seed) for seed in config.seeds)


def _resume(config: Config, store: Store, mesh: MeshId, wall: float) -> Start:
    wireguard_key = store.load_secret(Secret.WIREGUARD_KEY)
    bootstrap_key = store.load_secret(Secret.BOOTSTRAP_KEY)
    chain = store.load_meta(Meta.CHAIN)
    name = store.load_meta(Meta.NAME)
    prefix = store.load_meta(Meta.IPV4_PREFIX)
    open_mesh = store.load_meta(Meta.OPEN_MESH)
    if wireguard_key is None or bootstrap_key is None or chain is None or name is None:
        raise StartError(
            f"{store.path}: lacks keys of this node; move it away and join again with a token or "
            "the secret: node.key, the identity, stays"
        )
    identity = Identity(
        mesh=mesh,
        node_key=store.node_key,
        wireguard_key=WireGuardPrivateKey(wireguard_key),
        bootstrap_key=BootstrapKey(bootstrap_key),
        name=name.decode(),
        ipv4_prefix=config.ipv4_prefix if prefix is None else IPv4Network(prefix.decode()),
        chain=_chain(chain, 1, store),
        origin=_chain(chain, 64, store),
        former_word=b"".join(_chain(chain, 65, store)),
        # State of an earlier version does not say; that the secret is given does.
        open_mesh=config.secret is not None if open_mesh is None else open_mesh == b"1",
    )
    identity = load_roots(store, identity)
    starts = store.reserve_sequence(Counter.STARTS, 1)[0]
    memory = Memory(
        facts=tuple(store.load_facts()),
        sequence=_first_sequence(starts),
        incarnation=store.reserve_sequence(Counter.INCARNATION, 1)[0],
        keyrings=store.load_keyrings(),
        allocations=tuple(store.load_allocations()),
        keys=load_keys(store, wall),
    )
    return Start(identity, None, memory, _seeds(config, store), remembered=True)


def _seeds(config: Config, store: Store) -> tuple[str, ...]:
    """Return the seeds given, and keep them for later starts; else those kept."""
    given = _given_seeds(config)
    if given:
        store.save_meta(Meta.SEEDS, pack({1: given}))
        return given
    stored = store.load_meta(Meta.SEEDS)
    if stored is None:
        return ()
    try:
        fields = Fields.unpack_untrusted(stored, what="seeds")
        kept = fields.items(1, count_max=SEEDS_KEPT_MAX)
    except BadPacket as exc:
        raise StartError(
            f"{store.path}: holds seeds that make no sense; give them again with --seed"
        ) from exc
    return tuple(seed for seed in kept if isinstance(seed, str))


def _chain(stored: bytes, field: int, store: Store) -> tuple[bytes, ...]:
    try:
        return Fields.unpack_untrusted(stored, what="chain").blobs(
            field, count_max=CHAIN_LENGTH_MAX, bytes_max=CREDENTIAL_BYTES_MAX
        )
    except BadPacket as exc:
        raise StartError(
            f"{store.path}: holds a credential that makes no sense; move it away and join again"
        ) from exc
