"""A mesh's keys, and the smallest things the path tests need."""

from ipaddress import IPv4Network, ip_address
from random import Random

from meshd.addresses import overlay_prefix
from meshd.keys import BootstrapKey, MeshKey, NodeKey, WireGuardPrivateKey
from meshd.path.agent import Agent
from meshd.path.wire import Probe, ProbeSealer, ProbeType
from meshd.trust.credential import CredentialCache, founding_credential, issue
from meshd.trust.record import Candidate, CandidateKind, Record, sign_record
from meshd.wg.types import Endpoint

MESH_KEY = MeshKey(b"\x01" * 32)
MESH = MESH_KEY.id
BOOTSTRAP_KEY = BootstrapKey(b"\x02" * 32)
WALL = 1_700_000_000
OVERLAY = (overlay_prefix(MESH), IPv4Network("100.64.0.0/10"))
KEYS = [NodeKey(bytes([10 + i]) * 32) for i in range(20)]
A, B, C, D = KEYS[:4]


def endpoint(text, port=51820):
    return Endpoint(ip_address(text), port)


def host(text, port=51820, control_port=0):
    return Candidate(CandidateKind.HOST, ip_address(text), port, control_port)


def chain_of(key):
    return (issue(founding_credential(key.id, f"n{key.seed[0]}", MESH, WALL), MESH_KEY, MESH),)


def record_of(key, *candidates, sequence=1):
    record = Record(
        node=key.id,
        sequence=sequence,
        wireguard_key=WireGuardPrivateKey(key.seed).public,
        candidates=candidates,
        chain=chain_of(key),
    )
    return sign_record(record, key, MESH)


def new_cache():
    return CredentialCache()


def new_agent(key, *, seed=0, now=0.0, config=None, local=(), sequence=1):
    agent = Agent(
        key, MESH, BOOTSTRAP_KEY, excluded=OVERLAY, rng=Random(seed), now=now, config=config
    )
    if local:
        addresses = [ip_address(text) for text in local]
        agent.local_changed(addresses, port=51820, control_port=0, now=now)
    agent.record_changed(record_of(key, *map(host, local), sequence=sequence), sequence)
    return agent


def events_of(agent):
    events = []
    while (event := agent.next_event()) is not None:
        events.append(event)
    return events


class Scripted:
    """The other end, by hand: seals what the test says, and opens what the agent sends."""

    def __init__(self, key, *, bootstrap_key=BOOTSTRAP_KEY, seed=99):
        self.key = key
        self.sealer = ProbeSealer(key, MESH, bootstrap_key)
        self._rng = Random(seed)

    def seal(self, probe, target):
        return self.sealer.seal(probe, target.id, self._rng.randbytes(24))

    def ping(self, target, *, installed=True, held=1, sequence=1, record=None, yours=None):
        probe = Probe(
            type=ProbeType.PING,
            transaction=self._rng.randbytes(8),
            installed=installed,
            held=held,
            sequence=sequence,
            record=record,
            yours=yours,
        )
        return self.seal(probe, target)

    def pong(self, ping, target, *, observed, installed=True, held=1, sequence=1, uses=True):
        probe = Probe(
            type=ProbeType.PONG,
            transaction=ping.transaction,
            installed=installed,
            held=held,
            sequence=sequence,
            observed=observed,
            uses=uses,
        )
        return self.seal(probe, target)

    def open(self, datagram):
        return self.sealer.open_probe_untrusted(self.sealer.open_sender_untrusted(datagram))
