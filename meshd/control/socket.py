"""The control socket's file: `RUNTIME_DIR/INTERFACE.sock`.

Whoever may open the file may command the daemon, so its mode is the whole access control; and
whoever may write to its directory could put a socket of their own in its place, and hear what is
asked and told there.  A socket left behind by a daemon that was killed is replaced; one that
answers never is.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

from meshd.errors import StartError

if TYPE_CHECKING:
    from pathlib import Path

SOCKET_MODE = 0o660
DIRECTORY_MODE = 0o755
PATH_BYTES_MAX = 107  # sun_path of unix(7), less its final zero
BACKLOG = 64
ANSWER_TIMEOUT = 1.0


class ControlSocket:
    """A listening unix socket that removes its own file, and only its own, when closed."""

    def __init__(self, listener: socket.socket, path: Path) -> None:
        self.listener = listener
        self.path = path
        self._inode = path.stat().st_ino

    @classmethod
    def listen(cls, path: Path) -> ControlSocket:
        """Bind, without blocking sockets.  Raise StartError and leave nothing behind."""
        if len(os.fsencode(path)) > PATH_BYTES_MAX:
            raise StartError(
                f"{path}: a socket's path has at most {PATH_BYTES_MAX} bytes; "
                "choose a shorter --runtime-dir"
            )
        try:
            _make_directory(path.parent)
            _check_directory(path.parent)
            _remove_stale(path)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            try:
                listener.bind(os.fspath(path))
            except OSError:
                listener.close()
                raise
            bound = cls(listener, path)
            try:
                # Nobody can connect before `listen`: the mode is right before it matters.
                path.chmod(SOCKET_MODE)
                listener.listen(BACKLOG)
            except OSError:
                bound.close()
                raise
        except OSError as exc:
            raise StartError(
                f"{path}: cannot listen there: {exc.strerror}; choose another --runtime-dir"
            ) from exc
        return bound

    def close(self) -> None:
        """Stop listening and remove the file, unless somebody has replaced it."""
        self.listener.close()
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except FileNotFoundError:
            pass


def _make_directory(directory: Path) -> None:
    missing = [directory, *directory.parents]
    for parent in reversed([path for path in missing if not path.exists()]):
        parent.mkdir(exist_ok=True)
        # Regardless of the umask: unprivileged clients may look for the socket.
        parent.chmod(DIRECTORY_MODE)


def _check_directory(directory: Path) -> None:
    """Refuse a directory in which others may put, or replace, what they like."""
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise StartError(
            f"{directory}: belongs to user {status.st_uid}, who could pose as this daemon; "
            "chown it, or choose another --runtime-dir"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise StartError(
            f"{directory}: has mode {stat.S_IMODE(status.st_mode):04o}, so others could pose as "
            "this daemon; chmod go-w it, or choose another --runtime-dir"
        )


def _remove_stale(path: Path) -> None:
    """Make way for a new socket, unless something lives there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{path}: is there and is no socket; move it away")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_TIMEOUT)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return  # its owner has just removed it
        except (BlockingIOError, TimeoutError):
            pass  # its queue is full, so somebody listens
    raise StartError(f"{path}: another daemon answers there; end it, or choose another --interface")
