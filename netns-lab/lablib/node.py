"""A member of the lab: a machine with an underlay, and perhaps a meshd on it."""

from __future__ import annotations

import signal
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import TYPE_CHECKING, Any, TypeVar

from lablib import control, daemon
from lablib.capture import Capture
from lablib.errors import LabError
from lablib.fabric import cables, fabric_port, gateway_lines
from lablib.namespace import RUN_TIMEOUT
from lablib.ping import PingFlow, ping_each

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lablib.forking import Process
    from lablib.lab import Lab
    from lablib.namespace import Stream
    from lablib.topology import Member

CONTROL_SOCKET = "/run/meshd/mesh0.sock"
STOP_TIMEOUT = 30.0
LOG_LINES_SHOWN = 20

InterfaceT = TypeVar("InterfaceT", IPv4Interface, IPv6Interface)


class Node:
    """One member.  Addresses without further words are those on the underlay."""

    def __init__(self, member: Member, lab: Lab) -> None:
        self.name = member.name
        self.member = member
        self.lab = lab
        self.namespace = namespace = lab.namespaces[member.name]
        self.ipv4: IPv4Interface = member.port.ipv4
        self.ipv6: IPv6Interface | None = member.port.ipv6
        self.log: Path = namespace.log_directory / f"{self.name}.log"
        self.process: Process | None = None
        self._captures = 0

    def __repr__(self) -> str:
        return f"Node({self.name})"

    # Programs.

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
    ) -> subprocess.Popen[str]:
        """Start a program on the node: see Namespace.popen."""
        return self.namespace.popen(argv, env=env, stdin=stdin, stdout=stdout, stderr=stderr)

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        timeout: float = RUN_TIMEOUT,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the node to its end: see Namespace.run."""
        return self.namespace.run(argv, check=check, env=env, stdin=stdin, timeout=timeout)

    def file(self, path: str) -> Path:
        """Return where a file of the node's, /var/lib/meshd and such, is seen from here."""
        return self.namespace.file(path)

    # The daemon.

    def start_daemon(self, *args: str, env: Mapping[str, str] | None = None) -> Process:
        """Start meshd with these arguments; it may take a while to come up."""
        if self.process is not None and self.process.poll() is None:
            raise LabError(f"{self.name} has a meshd already")
        self.process = daemon.start(self.namespace, args, self.log, env or {}, self.lab.how)
        return self.process

    def stop_daemon(self, sig: int = signal.SIGTERM, *, timeout: float = STOP_TIMEOUT) -> int:
        """Send meshd a signal, wait for its end and return its exit status."""
        if self.process is None:
            raise LabError(f"no meshd was started on {self.name}")
        self.process.send_signal(sig)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(
                f"meshd on {self.name} runs on, {timeout:g} s after {signal.Signals(sig).name}; "
                f"its log ends:\n{self.log_tail()}"
            ) from None

    def kill_daemon(self) -> None:
        """End meshd as `kill -9` does."""
        self.stop_daemon(signal.SIGKILL)

    def reap(self) -> None:
        """Take note of the end of a daemon that went down with the lab."""
        if self.process is not None:
            self.process.wait(STOP_TIMEOUT)

    def log_text(self) -> str:
        """Return all that this node's daemons have logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_tail(self) -> str:
        """Return the end of the log, for error messages."""
        return "\n".join(self.log_text().splitlines()[-LOG_LINES_SHOWN:])

    def meshctl(
        self, *args: str, check: bool = True, timeout: float = RUN_TIMEOUT
    ) -> subprocess.CompletedProcess[str]:
        """Run meshctl on the node."""
        argv = [sys.executable, "-m", "meshd.meshctl", *args]
        env = {"PYTHONPATH": str(daemon.PROJECT)}
        return self.run(argv, check=check, env=env, timeout=timeout)

    def control(self, path: str, *, timeout: float = 10.0) -> dict[str, Any]:
        """Ask the control socket for a document, without the cost of starting a meshctl.

        Raise LabError while there is no daemon that answers.
        """
        return control.get(self.file(CONTROL_SOCKET), path, timeout)

    def status(self) -> dict[str, Any]:
        """Return what `meshctl status --json` says."""
        return self.control("/v1/status")

    # The network.

    @property
    def fabric_port(self) -> str:
        """The name of the fabric's end of the node's cable."""
        return fabric_port(self.name, self.member.port.interface)

    def link_down(self) -> None:
        """Pull the cable: the node loses its carrier and keeps its configuration."""
        self.lab.fabric.run(["ip", "link", "set", self.fabric_port, "down"])

    def link_up(self) -> None:
        """Plug the cable in again."""
        self.lab.fabric.run(["ip", "link", "set", self.fabric_port, "up"])

    def plug_in(self, interface: str, segment: str, *, host: int) -> IPv4Interface:
        """Give the node another cable, to a wire by its name, as that wire's `host`-th address.

        Its routes stay as they are.  Return the address.
        """
        wire = next(each for each in self.lab.topology.segments if each.name == segment)
        address = IPv4Interface((wire.ipv4[host], wire.ipv4.prefixlen))
        end, pid = fabric_port(self.name, interface), self.namespace.pid
        cable = (
            f"link add {end} type veth peer name {interface} netns {pid}\n"
            f"link set {end} master {segment} up\n"
        )
        self.lab.fabric.run(["ip", "-batch", "-"], stdin=cable)
        lines = f"link set {interface} up\naddress add {address} dev {interface}\n"
        self.run(["ip", "-batch", "-"], stdin=lines)
        return address

    def renumber(
        self, ipv4: IPv4Interface | None = None, ipv6: IPv6Interface | None = None
    ) -> None:
        """Change the underlay addresses, by default to others of the same subnets."""
        interface = self.member.port.interface
        lines = [f"address del {self.ipv4} dev {interface}"]
        self.ipv4 = ipv4 or self._free_address(self.ipv4)
        lines.append(f"address add {self.ipv4} dev {interface}")
        if self.ipv6:
            lines.append(f"address del {self.ipv6} dev {interface}")
            self.ipv6 = ipv6 or self._free_address(self.ipv6)
            lines.append(f"address add {self.ipv6} dev {interface} nodad")
        # With its last address an interface loses its routes.
        lines += gateway_lines(self.member)
        self.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")

    def _free_address(self, current: InterfaceT) -> InterfaceT:
        """Return the first address behind the current one that nobody on the subnet has."""
        taken: set[IPv4Address | IPv6Address] = {
            port.ipv4.ip for _, port in cables(self.lab.topology)
        }
        taken |= {node.ipv4.ip for node in self.lab.nodes.values()}
        taken |= {port.ipv6.ip for _, port in cables(self.lab.topology) if port.ipv6}
        taken |= {node.ipv6.ip for node in self.lab.nodes.values() if node.ipv6}
        for host in current.network.hosts():
            if host > current.ip and host not in taken:
                return type(current)((host, current.network.prefixlen))
        raise LabError(f"{current.network} has no free address behind {current.ip}")

    def delete_interface(self, name: str) -> None:
        """Delete a network interface of the node's."""
        self.run(["ip", "link", "del", name])

    def capture(self, *expression: str, path: Path | None = None) -> Capture:
        """Begin to capture what passes the node's cable: every frame, or what pcap-filter(7) says.

        Without a path, the file goes to the lab's directory and disappears with it.
        """
        self._captures += 1
        default = self.namespace.log_directory / f"{self.name}-{self._captures}.pcap"
        return Capture(self.lab.fabric, self.fabric_port, path or default, expression)

    def ping(self, *targets: str, timeout: float = 5.0) -> dict[str, float]:
        """Ping addresses until they answer; return round-trip seconds of those that did."""
        answered: dict[str, float] = self.namespace.call(
            lambda: ping_each(targets, timeout), f"ping {' '.join(targets)}"
        )
        return answered

    def ping_flow(
        self, target: str, *, rate: float = 100.0, duration: float | None = None
    ) -> PingFlow:
        """Begin a flow of pings to an address: `rate` a second, for a time or until stopped."""
        return PingFlow(self.namespace, target, rate=rate, duration=duration)
