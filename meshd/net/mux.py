"""One UDP port for WireGuard and for meshd's own datagrams, by a few stateless nft rules.

WireGuard's datagrams begin with a type (1 to 4) and three zero bytes, meshd's with a magic.

                         ┌──────────── this host ────────────┐
    peer ── 51820 ──▶ host firewall ──▶ "mesh"? ── no ──▶ WireGuard, port 51820
                         │                 └──── yes ──▶ meshd, its control port
    peer ◀── from 51820 ◀──────── port rewritten ◀────── meshd, its control port
                         └───────────────────────────────────┘

Rule 1: outgoing, the source port is rewritten before connection tracking, so that conntrack and
        any masquerade see one flow between the two WireGuard ports only.

Rule 2: incoming, the destination port is rewritten after the host's own firewall and NAT have
        judged the datagram as one for the WireGuard port.

Rule 3: what arrives at the control port from outside without that is dropped: meshd has one port.

Rule 4: a datagram is meshd's own by its socket's mark and its source port, never by its content.

Every rule's comment carries a digest of the whole rule set, so that one look at the table tells
whether all of it is there and up to date.  Loading is one transaction: the old rules hold until
the new ones do.  Calls block for as long as nft(8) runs, some 15 ms: use a thread.
"""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass

from meshd.errors import DeviceError
from meshd.net import nft
from meshd.underlay import MAGIC

# Before the raw table (-300) and so before conntrack (-200); behind srcnat, the last of a host
# firewall's chains on input (100).
OUTGOING_PRIORITY = -310
INCOMING_PRIORITY = 300

DIGEST_BYTES = 4
ROLES = ("outgoing", "incoming", "direct")


@dataclass(frozen=True, slots=True)
class PortMux:
    """What the rules are made from."""

    interface: str
    wireguard_port: int
    control_port: int
    mark: int

    def __post_init__(self) -> None:
        assert self.wireguard_port != self.control_port, "each socket has a port of its own"
        assert 0 < self.mark < 2**32, "without a mark anybody's datagrams would be taken for ours"


def table_name(interface: str) -> str:
    """Return the name of an interface's own table, a different one for each interface."""
    return f"meshd_{nft.in_name(interface)}"


def render(mux: PortMux) -> str:
    """Return the transaction that puts the rules in place, whatever was there before."""
    table = table_name(mux.interface)
    outgoing, incoming, direct = (f'comment "{text}"' for text in _comments(mux))
    rules = _rules(mux)
    # `add` makes the table if there is none, so that `delete` cannot fail.
    return f"""\
add table inet {table}
delete table inet {table}
table inet {table} {{
  chain outgoing {{
    type filter hook output priority {OUTGOING_PRIORITY}; policy accept;
    {rules[0]} {outgoing}
  }}
  chain incoming {{
    type filter hook input priority {INCOMING_PRIORITY}; policy accept;
    {rules[1]} {incoming}
    {rules[2]} {direct}
  }}
}}
"""


def is_intact(mux: PortMux, listing: str) -> bool:
    """Tell whether a listing of the table, as nft(8) prints it, holds all the rules."""
    return all(f'comment "{comment}"' in listing for comment in _comments(mux))


def nft_available() -> bool:
    """Tell whether nft(8) is here and the kernel takes such rules from us.  Changes nothing."""
    probe = PortMux("probe", wireguard_port=1, control_port=2, mark=1)
    try:
        nft.run("--check", "--file", "-", operation="check nft rules", ruleset=render(probe))
    except DeviceError:
        return False
    return True


def observe(mux: PortMux) -> bool:
    """Tell whether all the rules are in place, as made from exactly this `mux`."""
    try:
        listing = nft.run(
            "list", "table", "inet", table_name(mux.interface), operation="list rules"
        )
    except DeviceError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return is_intact(mux, listing)


def apply(mux: PortMux) -> None:
    """Put the rules in place, in one step.  Raise DeviceError; then nothing has changed."""
    nft.load(render(mux), operation="load nft rules")


def remove(interface: str) -> None:
    """Remove an interface's rules, if there are any."""
    table = table_name(interface)
    ruleset = f"add table inet {table}\ndelete table inet {table}\n"
    nft.load(ruleset, operation="remove nft rules")


def _rules(mux: PortMux) -> tuple[str, str, str]:
    magic = f"0x{MAGIC.hex()}"
    return (
        f"meta mark {mux.mark:#x} udp sport {mux.control_port} udp sport set {mux.wireguard_port}",
        # `accept` ends this chain, so that what was moved is not taken for direct.
        f"udp dport {mux.wireguard_port} @th,64,32 {magic} udp dport set {mux.control_port} accept",
        f"udp dport {mux.control_port} drop",
    )


def _comments(mux: PortMux) -> list[str]:
    """Return one comment for each rule, telling which it is and of which rule set."""
    priorities = f"{OUTGOING_PRIORITY} {INCOMING_PRIORITY}"
    text = "\n".join((table_name(mux.interface), priorities, *_rules(mux)))
    digest = hashlib.blake2s(text.encode(), digest_size=DIGEST_BYTES).hexdigest()
    return [f"meshd {digest} {role}" for role in ROLES]
