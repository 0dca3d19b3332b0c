"""A mesh of our members, forked from this process."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import secrets
import selectors
import socket
import sys
import time
import traceback
from functools import partial
from typing import Any, NoReturn

from membership import namespace
from membership.cluster import READY_TIMEOUT, Cluster, What
from membership.member import CONTROL_BYTES_MAX, Seat, run_member
from meshd.keys import MeshKey, NodeKey, WireGuardKey
from meshd.trust.credential import founding_credential, issue
from meshd.trust.record import Record, sign_record

CONTROL_BUFFER_BYTES = 2**20
COUNT_TIMEOUT = 10.0


class Ours(Cluster):
    """See the module docstring."""

    side = "ours"

    def __init__(self) -> None:
        super().__init__()
        self._mesh = MeshKey(secrets.token_bytes(32))
        self._seats: dict[str, Seat] = {}
        self._names: dict[str, str] = {}  # by node id
        self._control: dict[str, socket.socket] = {}
        self._versions: dict[str, int] = {}  # of records
        self._ready: set[str] = set()
        self._counted: dict[str, dict[str, Any]] = {}

    def _start(self, names: list[str]) -> None:
        for name in names:
            seat = self._seats[name] = self._make_seat(name)
            self._names[seat.key.id.hex()] = name
        namespace.add_addresses(self._seats[name].address for name in names)
        gc.collect()
        gc.freeze()  # so that members share what they have in common with us
        for name in names:
            self._fork(name)
        started = set(names)
        self.must("members are ready", lambda: self._ready >= started, READY_TIMEOUT)

    def join(self, name: str) -> None:
        """See Cluster."""
        self._tell(name, "join", self.address(self.seed))

    def heal(self) -> None:
        """Do nothing: what was missed is learnt by itself."""

    def publish(self, name: str) -> str:
        """See Cluster."""
        self._versions[name] = self._versions.get(name, 1) + 1
        self._tell(name, "publish")
        return f"{name} {self._versions[name]}"

    def leave(self, name: str) -> None:
        """See Cluster."""
        self._tell(name, "leave")

    def address(self, name: str) -> str:
        """See Cluster."""
        return str(self._seats[name].address)

    def accusations(self) -> int:
        """See Cluster."""
        return sum(counts["node"]["suspicions"] for counts in self._count().values())

    def counters(self) -> dict[str, Any]:
        """See Cluster."""
        summed: dict[str, dict[str, float]] = {"node": {}, "streams": {}, "events": {}}
        for counts in self._count().values():
            for group, values in counts.items():
                for key, value in values.items():
                    if isinstance(value, int):
                        summed[group][key] = summed[group].get(key, 0) + value
        return summed

    def _make_seat(self, name: str) -> Seat:
        key = NodeKey(secrets.token_bytes(32))
        credential = founding_credential(key.id, name, self._mesh.id, int(time.time()))
        chain = (issue(credential, self._mesh, self._mesh.id),)
        wireguard_key = WireGuardKey(hashlib.sha256(key.id).digest())
        record = Record(key.id, 1, wireguard_key, version="0.1.0", chain=chain)
        return Seat(name, key, self._mesh.id, sign_record(record, key, self._mesh.id))

    def _fork(self, name: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CONTROL_BUFFER_BYTES)
        pid = os.fork()
        if pid == 0:
            _be_member(self._seats[name], theirs)
        theirs.close()
        self._control[name] = ours
        self.running[name] = pid
        self._selector.register(ours, selectors.EVENT_READ, partial(self._hear, name))

    def _tell(self, name: str, *words: str) -> None:
        self._control[name].send(json.dumps(words).encode())

    def _hear(self, name: str) -> None:
        control = self._control[name]
        try:
            packet = control.recv(CONTROL_BYTES_MAX)
        except ConnectionError:
            packet = b""
        if not packet:
            self._selector.unregister(control)
            control.close()
            return
        match json.loads(packet):
            case ["ready"]:
                self._ready.add(name)
            case ["note", at, What.NEWS, node, version]:
                self.note(at, name, What.NEWS, f"{self._names[node]} {version}")
            case ["note", at, what, node, _]:
                self.note(at, name, What(what), self._names[node])
            case ["counts", counts]:
                self._counted[name] = counts
            case other:
                raise ValueError(other)

    def _count(self) -> dict[str, dict[str, Any]]:
        self._counted = {}
        for name in self.running:
            self._tell(name, "count")
        self.must(
            "members say what they have counted",
            lambda: self._counted.keys() >= self.running.keys(),
            COUNT_TIMEOUT,
        )
        return self._counted


def _be_member(seat: Seat, control: socket.socket) -> NoReturn:
    """Do in the forked process what it is there for, and nothing that its parent does."""
    code = 1
    try:
        kept = control.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        run_member(seat, control)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
