"""Somebody in the middle: a member to the newcomer, a newcomer to the member.  Run on a lab's node.

    python -m mesh.middle MEMBER

Both sides are the real cores, so it does all that an honest member and an honest newcomer do.  It
prints the two codes as one line of JSON once it has both, and goes on until it is ended.
"""

import json
import socket
import sys
import time
from ipaddress import ip_address
from random import SystemRandom

from meshd.bootstrap.approval_member import ApprovalWindow
from meshd.bootstrap.approval_newcomer import Newcomer
from meshd.keys import NodeKey
from meshd.underlay import DatagramType
from meshd.wg.types import Endpoint

PORT = 51820
STEP = 0.1
_FROM_NEWCOMERS = {DatagramType.APPROVAL_HELLO, DatagramType.APPROVAL_QUESTION}


def main(member):
    rng, now = SystemRandom(), time.monotonic()
    window = ApprovalWindow(rng=rng, now=now)
    window.open(now, 3600.0)
    newcomer = None
    told = False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.bind(("0.0.0.0", PORT))
        wire.settimeout(STEP)
        while True:
            datagram, source = receive(wire)
            now = time.monotonic()
            if datagram[4:5] and datagram[4] in _FROM_NEWCOMERS:
                window.receive_datagram(datagram, source, None, now)
            elif datagram and newcomer is not None:
                newcomer.receive_datagram(datagram, source, now)
            waiting = window.pending()
            if waiting and newcomer is None:
                # It claims to be whoever has come to it.
                key = NodeKey(rng.randbytes(32))
                newcomer = Newcomer(key.id, waiting[0].name, rng=rng, now=now)
                newcomer.seeds_resolved([Endpoint(ip_address(member), PORT)], now)
            outgoing = window.datagrams_to_send()
            if newcomer is not None:
                newcomer.handle_timer(now)
                outgoing += newcomer.datagrams_to_send()
            for out in outgoing:
                wire.sendto(out.datagram, (str(out.target.address), out.target.port))
            if waiting and newcomer is not None and newcomer.listed is not None and not told:
                told = True
                print(json.dumps([waiting[0].code, newcomer.listed.code]), flush=True)


def receive(wire):
    try:
        datagram, (host, port) = wire.recvfrom(2048)
    except TimeoutError:
        return b"", None
    return datagram, Endpoint(ip_address(host), port)


if __name__ == "__main__":
    main(sys.argv[1])
