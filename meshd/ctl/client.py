"""Blocking HTTP to a daemon on this host."""

from __future__ import annotations

import json
import os
import socket
import stat
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlencode

import h11

from meshd import __version__
from meshd.ctl.exits import Exit, Failed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# JSON from a daemon whose schema the caller knows.
Document: TypeAlias = dict[str, Any]

DEFAULT_RUNTIME_DIR = Path("/run/meshd")
RECEIVE_BYTES = 64 * 1024
ANSWER_TIMEOUT = 10.0

_EXITS = {400: Exit.USAGE, 403: Exit.NOT_ALLOWED}
_HOW_TO_START = "start it with `systemctl start meshd`, or see `meshd --help`"


def find_socket(runtime_dir: Path, interface: str | None) -> Path:
    """Return the socket of the daemon that is meant.  Raise Failed."""
    if interface is not None:
        return runtime_dir / f"{interface}.sock"
    try:
        entries = sorted(runtime_dir.iterdir())
    except FileNotFoundError:
        entries = []
    except OSError as exc:
        raise _unreachable(runtime_dir, exc) from exc
    found = [path for path in entries if path.suffix == ".sock" and _is_socket(path)]
    if not found:
        raise Failed(
            Exit.NO_DAEMON, f"no meshd runs here: no socket in {runtime_dir}; {_HOW_TO_START}"
        )
    if len(found) > 1:
        names = ", ".join(path.stem for path in found)
        raise Failed(
            Exit.USAGE,
            f"several meshd run here ({names}): choose one with --interface or --socket",
        )
    return found[0]


class Client:
    """One daemon.  Every request has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(
        self,
        target: str,
        query: Mapping[str, object] | None = None,
        *,
        timeout: float = ANSWER_TIMEOUT,
    ) -> Document:
        """Return the document at a target.  Raise Failed."""
        return self._one("GET", _with_query(target, query), None, timeout)

    def post(
        self,
        target: str,
        body: Mapping[str, object] | None = None,
        *,
        timeout: float = ANSWER_TIMEOUT,
    ) -> Document:
        """Ask for a change and return the document that tells of it.  Raise Failed."""
        return self._one("POST", target, body or {}, timeout)

    def lines(
        self,
        method: str,
        target: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> Iterator[Document]:
        """Yield documents as they come, however long that takes.  Raise Failed."""
        exchange = _Exchange(self.path, None)
        with closing(exchange):
            exchange.send(method, _with_query(target, query), body)
            status = exchange.receive_status()
            pending = b""
            for data in exchange.receive_data():
                *complete, pending = (pending + data).split(b"\n")
                for line in complete:
                    yield _checked(_parse(line, self.path), status)
            if pending:
                yield _checked(_parse(pending, self.path), status)

    def _one(
        self, method: str, target: str, body: Mapping[str, object] | None, timeout: float
    ) -> Document:
        exchange = _Exchange(self.path, timeout)
        with closing(exchange):
            exchange.send(method, target, body)
            status = exchange.receive_status()
            content = b"".join(exchange.receive_data())
        return _checked(_parse(content, self.path), status)


class _Exchange:
    """One request and its response."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        self._path = path
        self._http = h11.Connection(h11.CLIENT)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as exc:
            self._socket.close()
            raise _unreachable(path, exc) from exc

    def close(self) -> None:
        self._socket.close()

    def send(self, method: str, target: str, body: Mapping[str, object] | None) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        headers = [
            ("host", "meshd"),
            ("user-agent", f"meshctl/{__version__}"),
            ("content-length", str(len(content))),
            ("connection", "close"),
        ]
        events = [
            h11.Request(method=method, target=target, headers=headers),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ]
        data = b"".join(self._http.send(event) or b"" for event in events)
        try:
            self._socket.sendall(data)
        except BrokenPipeError:
            pass  # an answer may have been given before all was read: read it
        except OSError as exc:
            raise _unreachable(self._path, exc) from exc

    def receive_status(self) -> int:
        event = self._next_event()
        if not isinstance(event, h11.Response):
            raise _broken(self._path)
        return event.status_code

    def receive_data(self) -> Iterator[bytes]:
        while True:
            event = self._next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise _broken(self._path)

    def _next_event(self) -> type[h11.NEED_DATA | h11.PAUSED] | h11.Event:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(self._socket.recv(RECEIVE_BYTES))
        except (ConnectionResetError, h11.RemoteProtocolError) as exc:
            raise _broken(self._path) from exc
        except OSError as exc:
            raise _unreachable(self._path, exc) from exc
        return event


def _with_query(target: str, query: Mapping[str, object] | None) -> str:
    given = {key: value for key, value in (query or {}).items() if value is not None}
    return f"{target}?{urlencode(given)}" if given else target


def _parse(content: bytes, path: Path) -> Document:
    try:
        document: object = json.loads(content)
    except ValueError as exc:
        raise _broken(path) from exc
    if not isinstance(document, dict):
        raise _broken(path)
    return document


def _checked(document: Document, status: int) -> Document:
    error = document.get("error")
    if status < 400 and error is None:
        return document
    message = error.get("message") if isinstance(error, dict) else None
    raise Failed(_EXITS.get(status, Exit.FAILED), str(message or f"meshd answered {status}"))


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _unreachable(path: Path, exc: OSError) -> Failed:
    if isinstance(exc, PermissionError):
        return Failed(
            Exit.NOT_ALLOWED, f"{path}: you may not use it; become root, or join the group it has"
        )
    if isinstance(exc, FileNotFoundError):
        return Failed(Exit.NO_DAEMON, f"no meshd runs here: there is no {path}; {_HOW_TO_START}")
    if isinstance(exc, ConnectionRefusedError) and not _is_socket(path):
        return Failed(Exit.NO_DAEMON, f"{path} is no socket; --socket takes that of a meshd")
    if isinstance(exc, ConnectionRefusedError):
        return Failed(
            Exit.NO_DAEMON,
            f"no meshd answers at {path}: it was left by one that has ended; {_HOW_TO_START}",
        )
    if isinstance(exc, TimeoutError):
        return Failed(Exit.NO_DAEMON, f"meshd at {path} does not answer; see its log")
    return Failed(Exit.NO_DAEMON, f"{path}: {exc.strerror or exc}")


def _broken(path: Path) -> Failed:
    return Failed(Exit.NO_DAEMON, f"meshd at {path} ended, or is no meshd, before it had answered")
