"""`STATE_DIR/INTERFACE/`: the directory that one daemon at a time calls its own.

| file       | what it is                                                        |
| ---------- | ----------------------------------------------------------------- |
| `lock`     | held (flock) for as long as a daemon runs; its text is the pid    |
| `node.key` | the seed of the node key in base64, mode 0600; made here, once    |
| `mesh.db`  | all else, mode 0600: see `store`                                  |

Others may read none of it: the directory is made 0700 at every start, and a file that belongs to
another user, or that others have been given a right to, is refused rather than mended, since what
it holds may be known by then.

The node key may be a credential of systemd's instead, `meshd.node-key`, with the text that the file
would have.  Then there must be no such file.

What this run has created is remembered until it is clear that the start succeeds, so that a start
that fails leaves nothing half-done behind.
"""

from __future__ import annotations

import base64
import binascii
import errno
import fcntl
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from meshd.errors import StartError
from meshd.keys import KEY_BYTES, NodeKey

if TYPE_CHECKING:
    from collections.abc import Mapping

LOCK_NAME = "lock"
KEY_NAME = "node.key"
KEY_CREDENTIAL = "meshd.node-key"
KEY_FILE_BYTES_MAX = 256
DIRECTORY_MODE = 0o700
KEY_MODE = 0o600


class StateDirectory:
    """An open and locked directory."""

    def __init__(self, path: Path, lock: int, created: list[Path]) -> None:
        self.path = path
        self._lock = lock
        self._created = created

    @classmethod
    def open(cls, path: Path) -> StateDirectory:
        """Make the directory where it is missing, and lock it.  Raise StartError."""
        created: list[Path] = []
        try:
            for parent in reversed([path, *path.parents]):
                if not parent.exists():
                    parent.mkdir(mode=DIRECTORY_MODE if parent == path else 0o755)
                    created.append(parent)
            _check_directory(path)
            lock_path = path / LOCK_NAME
            if not lock_path.exists():
                created.append(lock_path)
            lock = _take_lock(lock_path)
        except OSError as exc:
            _remove(created)
            raise StartError(
                f"{path}: cannot be used for state: {exc.strerror}; "
                "mend that, or choose another --state-dir"
            ) from exc
        except StartError:
            _remove(created)
            raise
        return cls(path, lock, created)

    def node_key(self, given: NodeKey | None = None) -> NodeKey:
        """Return this node's key, made on the first call ever unless given.  Raise StartError."""
        path = self.path / KEY_NAME
        if given is not None:
            if path.exists():
                raise StartError(
                    f"{path}: is there beside the credential {KEY_CREDENTIAL}; remove it if that "
                    "holds the same key, or else do not give the credential"
                )
            return given
        try:
            return _read_key(path)
        except FileNotFoundError:
            seed = secrets.token_bytes(KEY_BYTES)
            self.write(path, base64.b64encode(seed) + b"\n")
            return NodeKey(seed)
        except OSError as exc:
            raise StartError(f"{path}: cannot be read: {exc.strerror}") from exc

    def replace_node_key(self, key: NodeKey) -> None:
        """Put another node key in the place of the one that is there, durably.  Raise StartError.

        Whatever happens, one of them is there, whole.
        """
        path = self.path / KEY_NAME
        partial = self._write_partial(path, base64.b64encode(key.seed) + b"\n")
        try:
            partial.rename(path)
            sync_directory(self.path)
        except OSError as exc:
            raise StartError(f"{path}: cannot be written: {exc.strerror}") from exc

    def write(self, path: Path, content: bytes) -> None:
        """Make a new file that is there whole or not at all.  Raise StartError."""
        self.put(self._write_partial(path, content), path)

    def _write_partial(self, path: Path, content: bytes) -> Path:
        # We hold the lock: a file of this name is what a crash has left.
        partial = path.with_name(path.name + ".partial")
        try:
            partial.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(partial, flags, KEY_MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            _remove([partial])
            raise StartError(f"{path}: cannot be written: {exc.strerror}") from exc
        return partial

    def put(self, partial: Path, path: Path) -> None:
        """Give a complete file its final name, durably.  Raise StartError."""
        try:
            partial.rename(path)
            self._created.append(path)
            sync_directory(self.path)
        except OSError as exc:
            _remove([partial])
            raise StartError(f"{path}: cannot be written: {exc.strerror}") from exc

    def expect(self, *paths: Path) -> None:
        """Say that others may make these files: they go, too, if the start fails."""
        self._created += [path for path in paths if not path.exists()]

    def keep(self) -> None:
        """Say that the start has succeeded: what it has created stays."""
        self._created.clear()

    def close(self) -> None:
        """Remove what nobody has said to keep, and let go of the lock."""
        _remove(self._created)
        self._created.clear()
        os.close(self._lock)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def given_node_key(environment: Mapping[str, str]) -> NodeKey | None:
    """Return the node key that systemd has given us, if it has.  Raise StartError."""
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if not directory:
        return None
    path = Path(directory) / KEY_CREDENTIAL
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StartError(f"credential {path}: cannot be read: {exc.strerror}") from exc
    return _parse_key(content, f"credential {path}")


def check_private(path: Path) -> None:
    """Raise StartError, or OSError, unless a file is ours and nobody else has a right to it."""
    _check_private(path, path.stat())


def _check_private(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise StartError(f"{path}: cannot be read: {os.strerror(errno.EISDIR)}")
    if status.st_uid != os.geteuid():
        raise StartError(
            f"{path}: belongs to user {status.st_uid} and meshd runs as {os.geteuid()}; chown it"
        )
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StartError(
            f"{path}: has mode {stat.S_IMODE(status.st_mode):04o}, so others can act as this "
            f"node; chmod 600 it (if others may have read it, move it away and join anew)"
        )


def _check_directory(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise StartError(f"{path}: is there and is no directory; choose another --state-dir")
    if status.st_uid != os.geteuid():
        raise StartError(
            f"{path}: belongs to user {status.st_uid} and meshd runs as {os.geteuid()}; "
            f"chown it, or choose another --state-dir"
        )
    if stat.S_IMODE(status.st_mode) != DIRECTORY_MODE:
        path.chmod(DIRECTORY_MODE)


def _take_lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, KEY_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise StartError(
            f"{path.parent}: is in use by a meshd that is running (pid {holder}); "
            "end it, or choose another --interface or --state-dir"
        ) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _read_key(path: Path) -> NodeKey:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        content = file.read(KEY_FILE_BYTES_MAX)
    _check_private(path, status)
    return _parse_key(content, str(path))


def _parse_key(content: bytes, where: str) -> NodeKey:
    try:
        return NodeKey(base64.b64decode(content.strip(), validate=True))
    except (ValueError, binascii.Error) as exc:
        raise StartError(
            f"{where}: is damaged; put it back from a backup, "
            "or move it away and join again as a new node"
        ) from exc


def _remove(paths: list[Path]) -> None:
    for path in reversed(paths):
        with suppress(OSError):  # what cannot be removed, or is not empty, was not ours alone
            path.rmdir() if path.is_dir() else path.unlink()
