"""A place of our own: a network namespace, in which packets are counted and lost.

    bench ── fork ──▶ first process of a new PID namespace, in a new network namespace
      │ forwards SIGINT, SIGTERM       └── members, agents

Rule 1: nothing is made that needs undoing.  Both namespaces end with their first process, however
        it ends, and take with them every process, address and rule.

Rule 2: both sides' packets are counted by the same rules, where they are sent, with IP headers:
        gossip over UDP, gossip over TCP, and the errors that kernels answer with.  What the bench
        itself says to serf's agents is neither counted nor lost, nor is what stands in for meshd's
        path layer.

Rule 3: packets are lost where they arrive.  A drop in `output` would be an error to the sender.

Rule 4: all that runs here comes before other programs, so that what is measured is the two sides
        and not whoever else uses the machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

INTRODUCTION_PORT = 7947  # of our members, in place of meshd's path layer
RPC_PORT_MIN, RPC_PORT_MAX = 20000, 29999  # of serf's agents

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000  # linux/sched.h
MS_REC, MS_PRIVATE = 0x4000, 0x40000  # linux/mount.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h

NICENESS = -15
AUTOGROUP = Path("/proc/self/autogroup")  # man 7 sched: niceness counts inside a session only

_COUNTERS = ("udp", "tcp", "icmp", "introductions")
_RULES = f"""
table inet bench {{
    counter sent_udp {{ }}
    counter sent_tcp {{ }}
    counter sent_icmp {{ }}
    counter sent_introductions {{ }}
    chain sent {{
        type filter hook output priority 0
        tcp dport {RPC_PORT_MIN}-{RPC_PORT_MAX} accept
        tcp sport {RPC_PORT_MIN}-{RPC_PORT_MAX} accept
        udp dport {INTRODUCTION_PORT} counter name sent_introductions accept
        meta l4proto udp counter name sent_udp
        meta l4proto tcp counter name sent_tcp
        meta l4proto {{ icmp, ipv6-icmp }} counter name sent_icmp
    }}
    chain received {{
        type filter hook input priority 0
        tcp dport {RPC_PORT_MIN}-{RPC_PORT_MAX} accept
        tcp sport {RPC_PORT_MIN}-{RPC_PORT_MAX} accept
        jump faults
    }}
    chain faults {{
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What all members together have sent: bytes with IP headers, by protocol, and packets."""

    bytes: dict[str, int]
    packets: int

    def since(self, before: Traffic) -> Traffic:
        """Return what was sent after `before` was read."""
        spent = {name: count - before.bytes[name] for name, count in self.bytes.items()}
        return Traffic(spent, self.packets - before.packets)


def run_inside(work: Callable[[], int]) -> int:
    """Do some work in namespaces of its own, and return what it returns."""
    _check(_libc().unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET))
    child = os.fork()
    if child == 0:
        _begin(work)

    def forward(number: int, _frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _begin(work: Callable[[], int]) -> None:
    """Be the first process of the namespace, and never return."""
    code = 1
    try:
        os.setsid()  # an interrupt from the terminal comes through our parent, once
        libc = _libc()
        _check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
        _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        _check(libc.mount(b"proc", b"/proc", b"proc", 0, None))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        os.nice(NICENESS)
        if AUTOGROUP.exists():
            AUTOGROUP.write_text(str(NICENESS))
        _run(["ip", "link", "set", "lo", "up"])
        _run(["nft", "-f", "-"], stdin=_RULES)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# Addresses


def add_addresses(addresses: Iterable[object]) -> None:
    """Make IPv6 addresses ours at once."""
    batch = "".join(f"address add {address}/128 dev lo nodad\n" for address in addresses)
    _run(["ip", "-6", "-batch", "-"], stdin=batch)


# Packets


def sent() -> Traffic:
    """Return what has been sent so far."""
    shown = json.loads(_run(["nft", "-j", "list", "counters", "table", "inet", "bench"]))
    counters = {
        entry["counter"]["name"].removeprefix("sent_"): entry["counter"]
        for entry in shown["nftables"]
        if "counter" in entry
    }
    gossip = [name for name in _COUNTERS if name != "introductions"]
    return Traffic(
        {name: counters[name]["bytes"] for name in _COUNTERS},
        sum(counters[name]["packets"] for name in gossip),
    )


def lose(percent: int) -> None:
    """Lose so many of a hundred packets, of all kinds."""
    _add_fault(f"numgen random mod 100 < {percent} drop")


def lose_all_of(address: str) -> None:
    """Lose whatever a machine sends or is sent, silently."""
    family = "ip6" if ip_address(address).version == 6 else "ip"
    _add_fault(f"{family} saddr {address} drop", f"{family} daddr {address} drop")


def heal() -> None:
    """Lose nothing more."""
    _run(["nft", "flush", "chain", "inet", "bench", "faults"])


def _add_fault(*rules: str) -> None:
    lines = "".join(f"add rule inet bench faults {rule}\n" for rule in rules)
    _run(["nft", "-f", "-"], stdin=lines)


def _run(command: list[str], stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


# Processes

_TICKS = os.sysconf("SC_CLK_TCK")
_IDLE_FIELDS = (3, 4)  # of /proc/stat: idle, waiting for disks


def cpu_seconds(pid: int) -> float:
    """Return how much CPU a process has used."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / _TICKS


def machine_cpu_seconds() -> float:
    """Return how much CPU the whole machine has used, others' programs included."""
    _, *fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    busy = (int(field) for at, field in enumerate(fields[:8]) if at not in _IDLE_FIELDS)
    return sum(busy) / _TICKS


def memory_bytes(pid: int | str) -> dict[str, int]:
    """Return a process's resident, proportional and private memory."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024
    return {
        "rss": fields["Rss"],
        "pss": fields["Pss"],
        "private": fields["Private_Clean"] + fields["Private_Dirty"],
    }
