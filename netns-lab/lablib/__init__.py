"""The network lab: machines, routers and wires made of Linux namespaces.

    from lablib import Lab, nat

    with Lab(nat(5)) as lab:
        lab["a"].start_daemon("--secret-file", "/etc/meshd/secret")
        wait_until(lambda: lab["a"].status(), "a answers", timeout=10)

Only Python's standard library is needed, and root.
"""

from __future__ import annotations

from lablib.capture import Capture, Packet
from lablib.daemon import Start, preload
from lablib.drawing import draw
from lablib.errors import CommandFailed, DeadlineExceeded, LabError, UsageError
from lablib.forking import Process
from lablib.lab import Lab, take_down
from lablib.node import Node
from lablib.ping import FlowReport, LastAnswers, Matrix, PingFlow
from lablib.sites import topology
from lablib.topology import Topology, internet, lan, nat
from lablib.traffic import Traffic, TrafficReport
from lablib.waiting import wait_until

__all__ = [
    "Capture",
    "CommandFailed",
    "DeadlineExceeded",
    "FlowReport",
    "Lab",
    "LabError",
    "LastAnswers",
    "Matrix",
    "Node",
    "Packet",
    "PingFlow",
    "Process",
    "Start",
    "Topology",
    "Traffic",
    "TrafficReport",
    "UsageError",
    "draw",
    "internet",
    "lan",
    "nat",
    "preload",
    "take_down",
    "topology",
    "wait_until",
]
