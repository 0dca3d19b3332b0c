"""A newcomer without any secret, a member with a window, and the wires between them."""

from ipaddress import ip_address
from random import Random

from meshd.bootstrap.approval_member import ApprovalWindow
from meshd.bootstrap.approval_newcomer import Newcomer
from meshd.keys import NodeKey
from meshd.wg.types import Endpoint

NODE = NodeKey(b"\x31" * 32).id
MEMBER_AT = Endpoint(ip_address("10.0.0.1"), 51820)
OTHER_MEMBER_AT = Endpoint(ip_address("10.0.0.2"), 51820)
NEWCOMER_AT = Endpoint(ip_address("10.0.0.9"), 40000)
MIDDLE_AT = Endpoint(ip_address("10.0.0.66"), 41000)
WINDOW = 600.0


def new_window(*, seed=1, opened=True, now=0.0):
    window = ApprovalWindow(rng=Random(seed), now=now)
    if opened:
        window.open(now, WINDOW)
    return window


def new_newcomer(*, seed=2, name="web", at=(MEMBER_AT,), now=0.0):
    newcomer = Newcomer(NODE, name, rng=Random(seed), now=now)
    newcomer.seeds_resolved(at, now)
    newcomer.handle_timer(now)
    return newcomer


def sent(core):
    return [out.datagram for out in core.datagrams_to_send()]


def events_of(newcomer):
    events = []
    while (event := newcomer.next_event()) is not None:
        events.append(event)
    return events


def carry(newcomer, window, *, now=0.0, source=NEWCOMER_AT, member=MEMBER_AT, steps=6):
    """Carry everything both ways until nothing is under way."""
    for _ in range(steps):
        to_member, to_newcomer = sent(newcomer), []
        for datagram in to_member:
            window.receive_datagram(datagram, source, None, now)
            to_newcomer += sent(window)
        for datagram in to_newcomer:
            newcomer.receive_datagram(datagram, member, now)
        if not to_member and not to_newcomer:
            return


def poll(newcomer, window, now, **at):
    """Let the newcomer do what is due, and carry it."""
    newcomer.handle_timer(now)
    window.handle_timer(now)
    carry(newcomer, window, now=now, **at)
