"""Asking a node's daemon through its control socket."""

from __future__ import annotations

import http.client
import json
import socket
from typing import TYPE_CHECKING, Any

from lablib.errors import LabError

if TYPE_CHECKING:
    from pathlib import Path

HOST = "meshd"  # HTTP wants one; the socket has none


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__(HOST, timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def get(path: Path, target: str, timeout: float) -> dict[str, Any]:
    """Return the document behind a request target.  Raise LabError for anything else."""
    connection = _UnixConnection(path, timeout)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as exc:
        raise LabError(f"no daemon answers: {exc}") from exc
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise LabError(f"GET {target}: {answer.status}: {body.decode(errors='replace')}")
    document: dict[str, Any] = json.loads(body)
    return document
