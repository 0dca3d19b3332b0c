"""What goes into the audit log of this node, and when.

    engine's events ──▶ `on_event` ──┐
    commands, signals ─▶ `note`  ────┴─▶ Store: entries first, then the facts they are about

Rule 1: what members sign is told by their facts, so entries about it are made of facts that have
        changed, by comparing what a member has with what it had.  Nothing has to be remembered
        for that but the facts themselves.

Rule 2: what this node does itself is on disk when `note` returns, if the disk takes it.

Rule 3: the log begins when the state is bound to a mesh; what came before waits until then.

Rule 4: no member fills the log by changing what it signs all the time: what it does counts against
        a quota, and an entry says when that is used up.

Rule 5: of settings only the names are kept, never the values; and of those that are secret not
        even whether they have changed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from meshd import __version__
from meshd.audit import Act, details_text
from meshd.codec import Fields, pack
from meshd.config import OPTIONS
from meshd.engine import events
from meshd.errors import BadPacket, StartError
from meshd.keys import InviteId, MeshId, NodeId, fingerprint
from meshd.store import Meta
from meshd.trust.epoch import open_epoch_untrusted
from meshd.trust.fact import FactKind
from meshd.trust.grant import open_grant_untrusted
from meshd.trust.invite_use import open_invite_use_untrusted
from meshd.trust.node_succession import open_node_succession_untrusted
from meshd.trust.revocation import open_revocation_untrusted
from meshd.trust.succession import open_succession_untrusted
from meshd.underlay import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshd.audit import Head
    from meshd.config import Config
    from meshd.daemon.disk import Disk
    from meshd.engine.engine import Engine
    from meshd.engine.events import Detail, Event
    from meshd.keys import WireGuardKey
    from meshd.store import Store
    from meshd.trust.credential import Credential
    from meshd.trust.fact import Fact
    from meshd.trust.invite import Invite
    from meshd.trust.standing import Standing

Id: TypeAlias = NodeId | MeshId | InviteId

SETTINGS_MAX = 256
QUOTA_BURST = 20  # entries about one member at a time
QUOTA_INTERVAL = 3600.0  # for each more of them
_DIGEST_BYTES = 8


@dataclass(slots=True)
class _Known:
    """What the log has already told of a member."""

    credential: Credential
    wireguard_key: WireGuardKey
    quota: TokenBucket
    restless: bool = False  # has used it up, and the log says so


class AuditLog:
    """See the module docstring."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        disk: Disk,
        config: Config,
        *,
        remembered: bool,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`remembered`: the state is bound to a mesh, and what the engine knows came from disk."""
        self._engine = engine
        self._store = store
        self._disk = disk
        self._config = config
        self._wall = wall
        self._begun = False
        self._early: list[Act] = []
        self._known: dict[NodeId, _Known] = {}
        if remembered:
            for node, standing in engine.ledger.members().items():
                self._known[node] = _Known(
                    standing.credential, standing.record.wireguard_key, self._quota()
                )
            self.begin()

    def begin(self) -> None:
        """Write from here on: the state is bound to a mesh."""
        self._begun = True
        head = self.head
        if head is not None and not head.number:
            opening: dict[str, Detail] = {"version": __version__, "members": len(self._known)}
            self._early.insert(0, self._act("log-opened", self._me, None, opening))
        self._store.save_acts(*self._early)
        self._early.clear()
        self.configured(self._config, by="start")
        self._flush(durable=True)

    @property
    def head(self) -> Head | None:
        """The newest entry's number and hash; None before `begin`, and if the disk fails."""
        if not self._begun:
            return None
        try:
            return self._store.audit_head()
        except StartError:
            return None

    def note(
        self,
        kind: str,
        *,
        subject: Id | None = None,
        signer: Id | None = None,
        details: Mapping[str, Detail] | None = None,
    ) -> None:
        """Keep what this node has done."""
        self._add(self._act(kind, subject, signer, details or {}))
        self._flush(durable=True)

    def on_event(self, event: Event) -> None:
        """Keep what the engine tells of, ahead of whatever else is done about it."""
        match event:
            case events.FactChanged(fact):
                try:
                    self._on_fact(fact)
                except BadPacket:
                    # The ledger has verified it; what it leads to may have ended since.
                    digest: dict[str, Detail] = {"digest": fact.digest.hex()}
                    self._add(self._act(fact.kind.name.lower(), None, None, digest))
            case events.RecordForgotten(node):
                self._known.pop(node, None)
                self._add(self._act("member-forgotten", node, self._me, {}))
            case _:
                return
        self._flush(durable=False)

    def configured(self, config: Config, *, by: str) -> None:
        """Keep which settings are not as they were: `by` a start, or a reload."""
        if not self._begun:
            self._config = config
            return
        digests = {
            option.key: _digest(getattr(config, option.field))
            for option in OPTIONS
            if option.field in config.given and not option.secret
        }
        before = self._load_settings()
        names = sorted(before.keys() | digests.keys())
        changed = tuple(name for name in names if before.get(name) != digests.get(name))
        if not changed:
            return
        self._add(
            self._act("configuration-changed", self._me, self._me, {"by": by, "settings": changed})
        )
        settings = pack({1: tuple(digests), 2: tuple(digests.values())})
        self._disk.keep("settings", lambda: self._store.save_meta(Meta.SETTINGS, settings))
        self._flush(durable=True)

    # Facts

    def _on_fact(self, fact: Fact) -> None:
        ledger = self._engine.ledger
        details: dict[str, Detail]
        match fact.kind:
            case FactKind.RECORD:
                standing = ledger.standing(NodeId(fact.key))
                if standing is not None:
                    self._on_record(standing)
            case FactKind.REVOCATION:
                revocation = open_revocation_untrusted(
                    fact.blob, ledger.mesh, ledger.cache
                ).revocation
                details = {"cascade": revocation.cascade, "revoked_at": revocation.revoked_at}
                self._add(
                    self._act("member-revoked", revocation.subject, revocation.signer, details)
                )
            case FactKind.INVITE_USE:
                use = open_invite_use_untrusted(fact.blob, ledger.mesh, ledger.cache).use
                if use.subject is None:
                    self._add(self._act("invite-withdrawn", use.invite, use.signer, {}))
                else:
                    details = {"invite": str(use.invite), "used_at": use.used_at}
                    self._add(self._act("invite-used", use.subject, use.signer, details))
            case FactKind.SUCCESSION:
                succession = open_succession_untrusted(fact.blob, ledger.mesh)
                kind = "mesh-sealed" if succession.seal else "mesh-key-rotated"
                details = {"number": succession.number, "overlap_until": succession.overlap_until}
                self._add(self._act(kind, succession.successor, succession.predecessor, details))
            case FactKind.GRANT:
                credential = open_grant_untrusted(
                    fact.blob, ledger.mesh, ledger.roots, ledger.cache
                ).credential
                self._add(
                    self._act(
                        "credential-granted",
                        credential.subject,
                        credential.issuer,
                        _rights(credential),
                    )
                )
            case FactKind.BOOTSTRAP_EPOCH:
                epoch = open_epoch_untrusted(fact.blob, ledger.mesh, ledger.cache).epoch
                self._add(
                    self._act("bootstrap-key-rotated", None, epoch.maker, {"number": epoch.number})
                )
            case FactKind.NODE_SUCCESSION:
                followed = open_node_succession_untrusted(fact.blob, ledger.mesh)
                details = {"dated": followed.dated, "kept": len(followed.kept)}
                self._add(self._act("node-key-announced", followed.node, followed.former, details))

    def _on_record(self, standing: Standing) -> None:
        node, credential = standing.record.node, standing.credential
        known = self._known.get(node)
        key = standing.record.wireguard_key
        if known is not None:
            if (credential, key) == (known.credential, known.wireguard_key):
                return
            if not self._take(known, node):
                return
        quota = self._quota() if known is None else known.quota
        self._known[node] = _Known(credential, key, quota)
        granted = credential.routes
        details: dict[str, Detail]
        if known is None:
            self._add(self._act("member-admitted", node, credential.issuer, _rights(credential)))
        elif credential != known.credential:
            kind = "credential-adopted" if node == self._me else "credential-renewed"
            self._add(self._act(kind, node, credential.issuer, _rights(credential)))
            granted = tuple(r for r in credential.routes if r not in known.credential.routes)
        else:
            granted = ()
        if granted:
            details = {"routes": tuple(map(str, granted))}
            self._add(self._act("routes-granted", node, credential.issuer, details))
        if known is not None and key != known.wireguard_key:
            details = {"before": str(known.wireguard_key), "after": str(key)}
            self._add(self._act("wireguard-key-rotated", node, node, details))

    def _quota(self) -> TokenBucket:
        return TokenBucket(rate=1 / QUOTA_INTERVAL, burst=QUOTA_BURST, now=self._wall())

    def _take(self, known: _Known, node: NodeId) -> bool:
        """Count what a member does.  What is left out, the next entry that has room sums up."""
        left = known.quota.take(self._wall())
        if not left and not known.restless:
            self._add(self._act("member-restless", node, None, {}))
        known.restless = not left
        return left

    # Writing

    @property
    def _me(self) -> NodeId:
        return self._engine.identity.node

    def _act(
        self, kind: str, subject: Id | None, signer: Id | None, details: Mapping[str, Detail]
    ) -> Act:
        return Act(
            at=int(self._wall()),
            kind=kind,
            subject="" if subject is None else str(subject),
            subject_name=self._name(subject),
            signer="" if signer is None else str(signer),
            signer_name=self._name(signer),
            details=details_text(
                {key: list(v) if isinstance(v, tuple) else v for key, v in details.items()}
            ),
        )

    def _name(self, who: Id | None) -> str:
        match who:
            case NodeId():
                # One who is revoked has no name in the mesh, but had one.
                ledger = self._engine.ledger
                standing = ledger.standing(who)
                own = "" if standing is None else standing.credential.name
                return ledger.names().get(who, own)
            case MeshId():
                return "mesh key"
            case _:
                return ""

    def _add(self, act: Act) -> None:
        if self._begun:
            self._store.save_acts(act)
        else:
            self._early.append(act)

    def _flush(self, *, durable: bool) -> None:
        if self._begun:
            self._disk.keep("audit", lambda: self._store.flush(durable=durable))

    def _load_settings(self) -> dict[str, bytes]:
        stored = self._store.load_meta(Meta.SETTINGS)
        if stored is None:
            return {}
        try:
            fields = Fields.unpack_untrusted(stored, what="settings")
            names = fields.items(1, count_max=SETTINGS_MAX)
            digests = fields.blobs(2, count_max=SETTINGS_MAX, bytes_max=_DIGEST_BYTES)
        except BadPacket:
            return {}  # then all of them count as changed
        return {str(name): digest for name, digest in zip(names, digests, strict=False)}


def _digest(value: object) -> bytes:
    # Only to be compared with the next start's.
    return fingerprint(repr(value).encode(), size=_DIGEST_BYTES, person=b"meshd.settings")


def _rights(credential: Credential) -> dict[str, Detail]:
    """Return what a credential says, without what is not given."""
    said: dict[str, Detail] = {
        "name": credential.name,
        "tags": credential.tags,
        "ipv4": None if credential.ipv4 is None else str(credential.ipv4),
        "routes": tuple(map(str, credential.routes)),
        "admit": credential.admit,
        "relay": credential.relay,
        "admitted_at": credential.admitted_at,
        "issued_at": credential.issued_at,
        "expires_at": credential.expires_at,
        "invite": None if credential.invite is None else str(credential.invite),
    }
    return {key: value for key, value in said.items() if value}


def invite_details(invite: Invite) -> dict[str, Detail]:
    """Return what an invite grants, without what is not given."""
    said: dict[str, Detail] = {
        "name": invite.name,
        "tags": invite.tags,
        "ipv4": None if invite.ipv4 is None else str(invite.ipv4),
        "routes": tuple(map(str, invite.routes)),
        "admit": invite.admit,
        "relay": invite.relay,
        "expires_at": invite.expires_at,
    }
    return {"uses": invite.uses, **{key: value for key, value in said.items() if value}}
