"""A machine on which things go wrong, what meshd says to that, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lablib import LabError, wait_until
from lablib.daemon import PROJECT, Start, start

NEEDS_ROOT = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="making network namespaces takes root"),
]

PATIENCE = 60.0  # a machine with an emulated CPU needs ten times as long for the same
SECRET = "four score and seven sheep ago"
USERSPACE = ("--backend", "userspace")  # where it is wireguard-go's troubles that are tried

# Somebody without rights, once all is imported: the checkout may be out of their reach.
_AS_NOBODY = """
import difflib, http.client, os, sys
import meshd.cli, meshd.ctl.client, meshd.daemon.daemon, meshd.meshctl, pyroute2
_, _, module, *args = sys.argv[1:]
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
main = {"meshd": meshd.cli.main, "meshd.meshctl": meshd.meshctl.main}[module]
sys.exit(main(args))
"""
NOBODY = (sys.executable, "-c", _AS_NOBODY)

_WRONG_CLOCK = """
import time
right = time.time
time.time = lambda: right() + {}
"""
_DIRECTORIES = ("/etc/meshd", "/run/meshd", "/run/wireguard", "/var/lib/meshd")
_PIDS_CHANGE = "lock"  # this file's text is the pid of whoever used the directory last


@dataclass(frozen=True)
class Outcome:
    """How a run of meshd or meshctl ended."""

    status: int
    output: str

    @property
    def said(self) -> list[str]:
        """The lines that are not the log's."""
        return [line for line in self.output.splitlines() if not line.startswith('{"at":')]

    def refuses(self, status: int, *parts: str) -> str:
        """Hold it to one clear line with these parts, and return the line."""
        assert self.status == status, self.output
        assert len(self.said) == 1, self.output
        [line] = self.said
        assert re.match(r"mesh(d|ctl): ", line)
        for part in parts:
            assert part in line, (part, line)
        return line


class Machine:
    """A member of the lab with at most one daemon on it, and no memory of the test before."""

    def __init__(self, node):
        self.node = node
        self.name = node.name
        self.secrets = [SECRET]  # what must never be shown

    # Files.

    def write(self, path, content, mode=0o600):
        """Write a file of the machine's."""
        file = self.node.file(path)
        file.touch(mode=mode)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        file.chmod(mode)
        return path

    def write_secret(self, secret=SECRET):
        """Write the secret file, and see that its content is never shown."""
        self.secrets.append(secret.strip())
        return self.write("/etc/meshd/secret", secret)

    def write_token(self, token):
        """Write the token file, and see that its content is never shown."""
        self.secrets.append(token.strip())
        return self.write("/etc/meshd/token", token)

    def sh(self, script):
        """Run a shell script that must not fail, and return what it prints."""
        return self.node.run(["sh", "-ec", script]).stdout

    # Programs.

    def meshd(self, *args, env=None, within=(), timeout=PATIENCE) -> Outcome:
        """Run meshd to its end; `within` are programs that start it."""
        log = self.node.log.with_suffix(".run")
        log.unlink(missing_ok=True)
        if within:
            with log.open("wb") as output:
                process = self.node.popen(
                    [*within, *self.command(*args)],
                    env={**self.environment, **(env or {})},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
        else:
            process = start(self.node.namespace, args, log, env or {}, self.node.lab.how)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(9)
            process.wait()
            raise AssertionError(f"meshd runs on:\n{log.read_text()}") from None
        return self._checked(Outcome(status, log.read_text()))

    environment = {"PYTHONPATH": str(PROJECT)}  # noqa: RUF012 - nobody writes into it

    def command(self, *args):
        """What a shell would be given to run meshd."""
        return [sys.executable, "-m", "meshd", *args]

    def meshctl(self, *args, within=()) -> Outcome:
        """Run meshctl to its end."""
        done = self.node.run(
            [*within, sys.executable, "-m", "meshd.meshctl", *args],
            check=False,
            env=self.environment,
        )
        return Outcome(done.returncode, done.stdout + done.stderr)

    def start(self, *args, clock=0.0):
        """Start the machine's daemon, and wait until it answers."""
        self.launch(*args, clock=clock)
        return self.wait_answering()

    def launch(self, *args, clock=0.0):
        """Start the machine's daemon, its wall clock so many seconds ahead of the others'.

        The kernel has one wall clock for all namespaces, so it is Python's that is set wrong.
        """
        if not clock:
            self.node.start_daemon(*args)
            return
        self.sh("mkdir -p /etc/meshd/clock")
        self.write("/etc/meshd/clock/sitecustomize.py", _WRONG_CLOCK.format(clock))
        path = f"/etc/meshd/clock:{PROJECT}"
        namespace, log = self.node.namespace, self.node.log
        self.node.process = start(namespace, args, log, {"PYTHONPATH": path}, Start.EXEC)

    def wait_answering(self):
        """Wait until the daemon answers, and return its status."""

        def answers():
            if self.node.process.poll() is not None:
                raise AssertionError(f"meshd has ended:\n{self.log}")
            return self.node.status()

        return wait_until(answers, f"meshd on {self.name} answers", timeout=PATIENCE)

    @property
    def log(self) -> str:
        """What the daemons of this machine have said in this test."""
        return self._checked(Outcome(0, self.node.log_text())).output

    def logged(self, part):
        """The lines of the log that hold a text."""
        return [line for line in self.log.splitlines() if part in line]

    def findings(self):
        """The health findings' messages by code."""
        return {each["code"]: each["message"] for each in self.node.status()["health"]}

    def wait_finding(self, code):
        """Wait until there is a finding, and return its message."""
        return wait_until(
            lambda: self.findings().get(code), f"{self.name} finds {code}", timeout=PATIENCE
        )

    def wait_healthy(self):
        """Wait until there is no finding."""
        wait_until(lambda: not self.findings(), f"{self.name} is healthy", timeout=PATIENCE)

    def wait_members(self, count):
        """Wait until so many are alive, and return the status."""

        def alive():
            status = self.node.status()
            assert status["mesh"]["members"]["alive"] == count, status["mesh"]["members"]
            return status

        return wait_until(alive, f"{self.name} sees {count} alive", timeout=PATIENCE)

    def bad_packets(self):
        """How many datagrams have been dropped, by reason."""
        return self.node.status()["self"]["counters"]["bad_packets"]

    def _checked(self, outcome: Outcome) -> Outcome:
        for secret in self.secrets:
            assert secret not in outcome.output, "a secret is shown"
        return outcome

    # What is left behind.

    def traces(self):
        """Everything that meshd could leave on a machine."""
        return {
            "interfaces": self._interfaces(),
            "tables": sorted(self.sh("nft list tables").splitlines()),
            "files": dict(self._files()),
            "processes": self._processes(),
        }

    @contextlib.contextmanager
    def unchanged(self):
        """Hold the block to leaving the machine as it was."""
        before = self.traces()
        yield

        def as_before():
            after = self.traces()
            for kind, expected in before.items():
                assert after[kind] == expected, kind
            return True

        # A process that has let go of its socket takes a moment to end.
        wait_until(as_before, f"{self.name} is as it was", timeout=10)

    def reset(self):
        """Make the machine as good as new."""
        if self.node.process is not None and self.node.process.poll() is None:
            self.node.kill_daemon()
        for interface in self._interfaces():
            if interface not in {"eth0", "lo"}:
                with contextlib.suppress(LabError):  # the other end of a pair is gone already
                    self.node.delete_interface(interface)
        self.sh("nft flush ruleset; rm -rf " + " ".join(f"{each}/*" for each in _DIRECTORIES))
        wait_until(lambda: len(self._processes()) == 1, "all processes have ended", timeout=10)
        self.node.log.unlink(missing_ok=True)
        self.secrets = [SECRET]

    def _interfaces(self):
        return sorted(path.name for path in self.node.file("/sys/class/net").iterdir())

    def _files(self):
        for directory in _DIRECTORIES:
            root = self.node.file(directory)
            for path in sorted(root.rglob("*")):
                known = path.is_file() and path.name != _PIDS_CHANGE
                yield str(path.relative_to(root.parent)), path.read_bytes() if known else b""

    def _processes(self):
        """The ids of the processes on the machine, its holder among them."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (entry / "ns/net").stat().st_ino == self.node.namespace.record.inode:
                    found.append(int(entry.name))
        return sorted(found)


_HOLD_PORT = """
import socket, sys
host, port = sys.argv[1:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM) as endpoint:
    endpoint.bind((host, int(port)))
    print("bound", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def port_taken(machine, address):
    """Hold a UDP port of a machine's."""
    host, _, port = address.rpartition(":")
    holder = machine.node.popen(
        [sys.executable, "-c", _HOLD_PORT, host.strip("[]"), port],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == "bound\n"
        yield
        holder.stdin.close()
