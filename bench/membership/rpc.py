"""serf's RPC protocol, as far as it is needed: msgpack over TCP, one map after another.

request   {"Command": …, "Seq": n}, and the command's own map if it has one
answer    {"Seq": n, "Error": ""}, and the command's own map if it has one
"""

from __future__ import annotations

import itertools
import socket
from typing import Any

import msgpack

VERSION = 1
TIMEOUT = 30.0


class Rpc:
    """A connection to one agent.  Answers are looked at only for their errors."""

    def __init__(self, port: int) -> None:
        """Connect; raise ConnectionRefusedError while nobody listens."""
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self._unpacker = msgpack.Unpacker()
        self._sequence = itertools.count(1)
        self.errors: list[str] = []
        self.call("handshake", Version=VERSION)

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def call(self, command: str, **body: Any) -> None:  # noqa: ANN401 - whatever msgpack takes
        """Send a command, and do not wait for its answer."""
        packed = msgpack.packb({"Command": command, "Seq": next(self._sequence)})
        if body:
            packed += msgpack.packb(body)
        self.socket.sendall(packed)

    def read(self) -> bool:
        """Take in what is there, once some of it is.  Return whether the connection lives on."""
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            return False
        self._unpacker.feed(data)
        for message in self._unpacker:
            if isinstance(message, dict) and message.get("Error"):
                self.errors.append(str(message["Error"]))
        return bool(data)
