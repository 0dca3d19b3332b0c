"""A mesh with a seed, a newcomer, and the way between them."""

from ipaddress import IPv4Address, IPv4Network, ip_address
from random import Random

from meshd.bootstrap.joiner import Joiner
from meshd.bootstrap.messages import ByInvite, ByRecord
from meshd.bootstrap.responder import Responder
from meshd.keys import BootstrapKey, InviteKey, MeshKey, NodeKey, WireGuardPrivateKey
from meshd.trust.credential import Credential, CredentialCache, founding_credential, issue
from meshd.trust.invite import Invite, sign_invite
from meshd.trust.record import Candidate, CandidateKind, Record, sign_record
from meshd.wg.types import Endpoint

MESH_KEY = MeshKey(b"\x01" * 32)
MESH = MESH_KEY.id
BOOTSTRAP_KEY = BootstrapKey(b"\x02" * 32)
SEED, NEWCOMER, OTHER = (NodeKey(bytes([n]) * 32) for n in (11, 12, 13))
INVITE_KEY = InviteKey(b"\x21" * 32)
WALL = 1_700_000_000.0
PREFIX = IPv4Network("100.64.0.0/10")
SEED_AT = Endpoint(ip_address("203.0.113.1"), 51820)
OTHER_AT = Endpoint(ip_address("203.0.113.2"), 51820)
NEWCOMER_AT = Endpoint(ip_address("198.51.100.7"), 40000)
HERE = SEED_AT.address


def chain_of(key, *, name="seed"):
    return (issue(founding_credential(key.id, name, MESH, int(WALL)), MESH_KEY, MESH),)


def record_of(key, *, chain=None, candidates=1, version="0.1.0"):
    record = Record(
        node=key.id,
        sequence=2**47,
        wireguard_key=WireGuardPrivateKey(key.seed).public,
        candidates=tuple(
            Candidate(CandidateKind.HOST, ip_address(2**127 + n), 51820) for n in range(candidates)
        ),
        ipv4=IPv4Address("100.64.1.2"),
        version=version,
        chain=chain or chain_of(key),
    )
    return sign_record(record, key, MESH)


def link_for(subject, issuer=SEED, *, name="newcomer"):
    credential = Credential(
        issuer=issuer.id,
        subject=subject.id,
        name=name,
        admitted_at=int(WALL),
        issued_at=int(WALL),
        invite=INVITE_KEY.id,
    )
    return issue(credential, issuer, MESH)


def by_invite(*, name="newcomer", key=INVITE_KEY):
    invite = Invite(id=key.id, issuer=SEED.id, expires_at=int(WALL) + 3600)
    return ByInvite(name, sign_invite(invite, SEED, MESH), key)


def by_record(key=NEWCOMER):
    return ByRecord(record_of(key, chain=chain_of(key, name="newcomer")))


def new_responder(key=SEED, *, seed=1, bootstrap_key=BOOTSTRAP_KEY):
    return Responder(key, MESH, bootstrap_key, rng=Random(seed), now=0.0)


def new_joiner(
    introduction=None,
    *,
    seeds=("seed:51820",),
    key=NEWCOMER,
    seed=2,
    bootstrap_key=BOOTSTRAP_KEY,
    config=None,
):
    return Joiner(
        key,
        MESH,
        bootstrap_key,
        seeds=seeds,
        introduction=introduction or by_invite(),
        cache=CredentialCache(),
        rng=Random(seed),
        now=0.0,
        config=config,
    )


def events_of(core):
    events = []
    while (event := core.next_event()) is not None:
        events.append(event)
    return events


def asked(joiner, now=0.0, *, at=(SEED_AT,)):
    """Resolve the seeds, and return the requests that the joiner sends."""
    joiner.seeds_resolved([("seed:51820", at)], now)
    events_of(joiner)
    joiner.handle_timer(now, WALL)
    return [out.datagram for out in joiner.datagrams_to_send()]


def answered(responder, reference, verdict, *, key=SEED, chain=None, record=None):
    """Seal an answer, and return its datagram."""
    chain = chain or chain_of(key)
    assert responder.answer(
        reference,
        verdict,
        record=record or record_of(key, chain=chain),
        chain=chain,
        ipv4_prefix=PREFIX,
        wall=WALL,
    )
    (out,) = responder.datagrams_to_send()
    return out.datagram


def opened(responder, request, now=0.0, source=NEWCOMER_AT):
    """Give a request to a responder, and return the one event that must follow."""
    responder.receive_datagram(request, source, HERE, now)
    (event,) = events_of(responder)
    return event
