"""A machine of the lab: network, mount and host name namespaces, kept alive by a holder process.

The holder is a `sleep` that was forked, unshared and set up, and writes down what it made before
it does anything else, in a file of its own in the lab's directory:

    fork ─► unshare ─► record ─► mounts, sysctls ─► "ready" ─► exec sleep infinity

So however the program that started it ends, what exists is on record, and `destroy` can find it.
A namespace is recognised by its cookie, a number that the kernel gives out once per boot: process
ids and inode numbers come round again, and nothing may be ended that is not the lab's.

Inside, /run is empty, /etc and /var/lib are the host's with a private layer on top, and /sys is
the namespace's own.  So every default path of meshd and wireguard-go is private to the node, and
the host's files stay as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from lablib import console, forking, syscalls
from lablib.errors import CommandFailed, LabError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Stream: TypeAlias = IO[Any] | int | None

SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, since Linux 5.14
START_TIMEOUT = 30.0
RUN_TIMEOUT = 60.0
DESTROY_TIMEOUT = 30.0
KILL_ROUNDS_MAX = 20  # a process may fork while it is being ended
_PRIVATE_LAYERS = ("/etc", "/var/lib")
_PRIVATE_DIRECTORIES = ("/run/wireguard", "/run/meshd", "/var/lib/meshd", "/etc/meshd")


@dataclass(frozen=True, slots=True)
class Record:
    """What is written down about a namespace."""

    name: str
    pid: int  # of the holder
    boot: str
    inode: int
    cookie: int


class Namespace:
    """A running machine.  Made by `create` or read back by `load`."""

    def __init__(self, record: Record, path: Path) -> None:
        self.name = record.name
        self.record = record
        self.log_directory = path.parent
        self._path = path

    @classmethod
    def create(cls, name: str, path: Path, *, sysctls: Mapping[str, str]) -> Starting:
        """Begin to make a namespace; `Starting.wait` returns it."""
        console.command("lab", ["unshare", "--net", "--mount", "--uts", "sleep", "infinity"])
        return Starting(name, path, sysctls)

    @classmethod
    def load(cls, path: Path) -> Namespace:
        """Read a record back."""
        return cls(Record(**json.loads(path.read_text())), path)

    @property
    def pid(self) -> int:
        """The holder's process id: what `nsenter -t` takes."""
        return self.record.pid

    def file(self, path: str) -> Path:
        """Return where a file of the machine's can be reached from outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    def alive(self) -> bool:
        """Whether the holder is there and is ours."""
        return _is_inside(self.pid, {self.record.inode: self.record})

    def enter(self) -> None:
        """Move this process, which must have one thread only, into the namespaces."""
        kinds = {"net": syscalls.CLONE_NEWNET, "uts": syscalls.CLONE_NEWUTS}
        kinds["mnt"] = syscalls.CLONE_NEWNS
        opened = [
            (os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC), flag)
            for kind, flag in kinds.items()
        ]
        for fd, flag in opened:
            syscalls.setns(fd, flag)
            os.close(fd)

    def call(self, function: Callable[[], Any], what: str) -> Any:  # noqa: ANN401 - JSON
        """Run a Python function inside, in a forked child, and return its result."""
        return self.background_call(function, what).result()

    def background_call(self, function: Callable[[], Any], what: str) -> forking.BackgroundCall:
        """Begin to run a Python function inside."""

        def inside() -> Any:  # noqa: ANN401 - whatever JSON holds
            self.enter()
            return function()

        return forking.BackgroundCall(inside, f"{self.name}: {what}")

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        new_session: bool = False,
        shown_input: str | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program inside; `env` is added to our environment.  It starts in /.

        `shown_input` is what the caller is going to feed it, for -v.
        """
        console.command(self.name, argv, shown_input)
        return subprocess.Popen(
            ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--", *argv],
            env=environment(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=new_session,
            text=True,
        )

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str = ""
    ) -> Running:
        """Start a program inside whose output is wanted at its end."""
        return Running(self, argv, env, stdin)

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = RUN_TIMEOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside to its end; raise CommandFailed for a bad status if `check`."""
        return self.start(argv, env=env, stdin=stdin).finish(check=check, timeout=timeout)


class Running:
    """A program inside a namespace, fed from a file and writing into files.

    Files rather than pipes: what it leaves running in the background may keep them open.
    """

    def __init__(
        self, namespace: Namespace, argv: Sequence[str], env: Mapping[str, str] | None, stdin: str
    ) -> None:
        self._where = namespace.name
        self._argv = argv
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        with tempfile.TemporaryFile("w+") as given:
            given.write(stdin)
            given.seek(0)
            self._process = namespace.popen(
                argv,
                env=env,
                stdin=given,
                stdout=self._output,
                stderr=self._errors,
                shown_input=stdin,
            )

    def finish(
        self, *, check: bool = True, timeout: float = RUN_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Wait for its end and return what came of it."""
        try:
            status = self._process.wait(timeout)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            stdout, stderr = _contents(self._output), _contents(self._errors)
        if check and status != 0:
            raise CommandFailed(self._where, self._argv, status, stdout + stderr)
        return subprocess.CompletedProcess(self._argv, status, stdout, stderr)


def _contents(file: IO[str]) -> str:
    with file:
        file.seek(0)
        return file.read()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment programs of the lab get: ours, with our Python's programs first."""
    programs = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    return {**os.environ, "PATH": f"{programs}:{path}", **(extra or {})}


class Starting:
    """A namespace that is being made."""

    def __init__(self, name: str, path: Path, sysctls: Mapping[str, str]) -> None:
        self._name = name
        self._path = path
        self._messages, theirs = os.pipe()
        self._process = forking.fork(
            lambda: _hold(name, path, sysctls), f"holder of {name}", output=theirs
        )
        os.close(theirs)

    def wait(self) -> Namespace:
        """Wait until it is set up.  Raise LabError when it could not be."""
        with open(self._messages, encoding="utf-8") as messages:  # noqa: PTH123 - a descriptor
            ready, _, _ = select.select([messages], [], [], START_TIMEOUT)
            text = messages.readline() if ready else "took too long"
            if text != "ready\n":
                raise LabError(f"cannot set up {self._name}: {text}{messages.read()}".rstrip())
        return Namespace.load(self._path)


def _hold(name: str, path: Path, sysctls: Mapping[str, str]) -> None:
    """Be the holder: runs in the child, and ends as `sleep` or with a line that says why not."""
    try:
        _set_up(name, path, sysctls)
    except OSError as exc:
        print(exc, file=sys.stderr)
        raise SystemExit(1) from None
    os.write(1, b"ready\n")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.execv("/bin/sleep", ["sleep", "infinity"])


def _set_up(name: str, path: Path, sysctls: Mapping[str, str]) -> None:
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS)
    record = Record(
        name=name,
        pid=os.getpid(),
        boot=_boot_id(),
        inode=Path("/proc/self/ns/net").stat().st_ino,
        cookie=_own_cookie(),
    )
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(asdict(record)))
    temporary.rename(path)
    socket.sethostname(name)
    _make_private_files()
    for key, value in sysctls.items():
        Path("/proc/sys", key).write_text(value)


def _make_private_files() -> None:
    # A slave, so that what the host unmounts is not kept mounted by us.
    syscalls.mount("none", "/", "none", syscalls.MS_REC | syscalls.MS_SLAVE)
    syscalls.mount("lab", "/run", "tmpfs", 0, "mode=0755")
    syscalls.mount("lab", "/sys", "sysfs")
    for lower in _PRIVATE_LAYERS:
        layer = Path("/run/.lab", lower.strip("/").replace("/", "-"))
        (layer / "upper").mkdir(parents=True)
        (layer / "work").mkdir()
        options = f"lowerdir={lower},upperdir={layer}/upper,workdir={layer}/work"
        syscalls.mount("lab", lower, "overlay", 0, options)
    for directory in _PRIVATE_DIRECTORIES:
        Path(directory).mkdir(mode=0o755, exist_ok=True)
        syscalls.mount("lab", directory, "tmpfs", 0, "mode=0755")


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _own_cookie() -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        raw = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int.from_bytes(raw, sys.byteorder)


def destroy(records: Sequence[Record]) -> list[int]:
    """End every process inside the namespaces, holders too; return the ids of those ended.

    The kernel takes the namespaces and all that is in them away with the last process.
    """
    boot = _boot_id()
    wanted = {record.inode: record for record in records if record.boot == boot}
    ended: list[int] = []
    for _ in range(KILL_ROUNDS_MAX):
        found = list(_processes_inside(wanted))
        if not found:
            return ended
        deadline = time.monotonic() + DESTROY_TIMEOUT
        for pid, pidfd in found:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
            os.close(pidfd)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            ended.append(pid)
    raise LabError("processes in the lab go on making more of themselves")


def _processes_inside(wanted: Mapping[int, Record]) -> Iterator[tuple[int, int]]:
    """Find the processes inside; yield each one's id and a pidfd that cannot become another's."""
    if not wanted:
        return
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            if _is_inside(pid, wanted):
                yield pid, pidfd
            else:
                os.close(pidfd)


def _is_inside(pid: int, wanted: Mapping[int, Record]) -> bool:
    """Whether a process, which may end meanwhile, is in one of the namespaces."""
    try:
        record = wanted.get(Path(f"/proc/{pid}/ns/net").stat().st_ino)
        return record is not None and record.boot == _boot_id() and _cookie(pid) == record.cookie
    except OSError:
        return False


def _cookie(pid: int) -> int | None:
    """Return the cookie of a process's network namespace, or None if it is gone."""

    def look() -> int | None:
        try:
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
        return _own_cookie()

    cookie: int | None = forking.call(look, f"cookie of process {pid}")
    return cookie
