"""A cluster of serf agents, with the defaults for a LAN.

What members see is read from their logs, as it is written: what an agent tells its event handlers
and RPC streams, it has first collected for up to three seconds.

They talk over IPv4, whose headers are 20 bytes smaller than those of our members.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
import sys
import time
from functools import partial
from typing import Any

from membership.cluster import READY_TIMEOUT, Cluster, What
from membership.namespace import RPC_PORT_MIN
from membership.rpc import Rpc

INSTALL = (
    "serf is not installed, and there is nothing to compare with: `apt-get install serf` brings it "
    "(its service is not needed: `systemctl disable --now serf`)"
)
EVENT_BYTES = 256  # about what a record of ours takes

_LINES = (
    (re.compile(rb"serf: EventMemberJoin: (\S+)"), What.ALIVE),
    (re.compile(rb"serf: EventMemberFailed: (\S+)"), What.DEAD),
    (re.compile(rb"serf: EventMemberLeave: (\S+)"), What.LEFT),
    (re.compile(rb"memberlist: Suspect (\S+) has failed"), What.SUSPECT),
    (re.compile(rb"agent: Received event: user-event: (\S+)"), What.NEWS),
)
_COUNTED = {
    "refutations": b"memberlist: Refuting",
    "rescued_over_tcp": b"but other probes failed",
}


def version() -> str | None:
    """Return the installed serf's version, or None."""
    if shutil.which("serf") is None:
        return None
    shown = subprocess.run(["serf", "version"], capture_output=True, text=True, check=True)
    return shown.stdout.splitlines()[0]


class Serf(Cluster):
    """See the module docstring."""

    side = "serf"

    def __init__(self) -> None:
        super().__init__()
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._rpc: dict[str, Rpc] = {}
        self._partial: dict[str, bytes] = {}
        self._ready: set[str] = set()
        self._published = 0
        self._counts = dict.fromkeys(_COUNTED, 0)

    def _start(self, names: list[str]) -> None:
        for name in names:
            agent = subprocess.Popen(
                [
                    "serf",
                    "agent",
                    f"-node={name}",
                    f"-bind={self.address(name)}",
                    f"-rpc-addr=127.0.0.1:{self._rpc_port(name)}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            assert agent.stdout is not None
            os.set_blocking(agent.stdout.fileno(), False)
            self._agents[name] = agent
            self.running[name] = agent.pid
            read = partial(self._read_log, name, agent.stdout.fileno())
            self._selector.register(agent.stdout, selectors.EVENT_READ, read)
        started = set(names)
        self.must("agents listen", lambda: self._ready >= started, READY_TIMEOUT)
        for name in names:
            rpc = self._rpc[name] = Rpc(self._rpc_port(name))
            self._selector.register(rpc.socket, selectors.EVENT_READ, partial(self._answer, name))

    def join(self, name: str) -> None:
        """See Cluster."""
        self._rpc[name].call("join", Existing=[self.address(self.seed)], Replay=False)

    def heal(self) -> None:
        """Have all exchange their whole state with the seed once more."""
        for name in self.running:
            if name != self.seed:
                self.join(name)

    def publish(self, name: str) -> str:
        """See Cluster."""
        self._published += 1
        news = f"news{self._published}"
        self._rpc[name].call("event", Name=news, Payload=bytes(EVENT_BYTES), Coalesce=False)
        return news

    def leave(self, name: str) -> None:
        """See Cluster."""
        self._rpc[name].call("leave")

    def address(self, name: str) -> str:
        """See Cluster."""
        number = int(name[1:]) + 1
        return f"127.1.{number >> 8}.{number & 255}"

    def accusations(self) -> int:
        """See Cluster."""
        return sum(note.what is What.SUSPECT for note in self.notes)

    def counters(self) -> dict[str, Any]:
        """See Cluster."""
        return dict(self._counts)

    def _rpc_port(self, name: str) -> int:
        return RPC_PORT_MIN + int(name[1:])

    def _read_log(self, name: str, descriptor: int) -> None:
        at = time.monotonic()
        data = os.read(descriptor, 65536)
        if not data:
            self._selector.unregister(descriptor)
            self._close_log(name)
            return
        *lines, rest = (self._partial.get(name, b"") + data).split(b"\n")
        self._partial[name] = rest
        for line in lines:
            self._take_line(name, line, at)

    def _close_log(self, name: str) -> None:
        log = self._agents[name].stdout
        assert log is not None
        log.close()

    def _take_line(self, name: str, line: bytes, at: float) -> None:
        if b"Serf agent running!" in line:
            self._ready.add(name)
        for pattern, what in _LINES:
            if (match := pattern.search(line)) is not None:
                self.note(at, name, what, match[1].decode())
                return
        for counted, text in _COUNTED.items():
            self._counts[counted] += text in line

    def _answer(self, name: str) -> None:
        rpc = self._rpc[name]
        if not rpc.read():
            self._selector.unregister(rpc.socket)
            rpc.close()
        for error in rpc.errors:
            print(f"serf: {name}: {error}", file=sys.stderr)
        rpc.errors.clear()
