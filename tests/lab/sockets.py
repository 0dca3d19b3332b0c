"""Sockets of this process on machines of a lab."""

import contextlib
import os
import select
import socket

from lablib import syscalls

PATIENCE = 20.0
SILENCE = 0.3  # seconds after which what has not come from the next machine will not come


class Machine:
    def __init__(self, lab, name, stack):
        self.namespace = lab.namespaces[name]
        self.node = lab.nodes[name]
        self._stack = stack

    def udp(self, port=0, version=4):
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with inside(self.namespace):
            opened = self._stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        address = self.node.ipv4 if version == 4 else self.node.ipv6
        opened.bind((str(address.ip), port))
        opened.setblocking(False)
        return opened


@contextlib.contextmanager
def inside(namespace):
    """Have sockets made in a namespace; they stay in it."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    its = os.open(f"/proc/{namespace.pid}/ns/net", os.O_RDONLY)
    syscalls.setns(its, syscalls.CLONE_NEWNET)
    try:
        yield
    finally:
        syscalls.setns(own, syscalls.CLONE_NEWNET)
        os.close(own)
        os.close(its)


def receive(opened, timeout=PATIENCE):
    """Return the next datagram and where it came from."""
    readable, _, _ = select.select([opened], [], [], timeout)
    assert readable, "nothing came"
    data, source = opened.recvfrom(2048)
    return data, source[:2]


def silent(opened):
    """Whether nothing comes."""
    return not select.select([opened], [], [], SILENCE)[0]
