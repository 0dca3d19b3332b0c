"""Asks a router for a port by UPnP: a program of its own, run for one question at a time.

    one line of JSON ─▶ lay down all rights ─▶ miniupnpc: description, SOAP ─▶ one line of JSON

The library parses, in C, the XML of whatever calls itself a router.  So it does that in a process
that can do nothing else: no privilege, no file to write, no child, little memory, little time.  The
line in and out is `meshd.portmap.upnp`'s; whoever reads it believes it no more than the router.

This file imports nothing of meshd: it is started by its path, with neither meshd's environment nor
its current directory.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import sys
from typing import Any
from urllib.parse import urlsplit

QUESTION_BYTES_MAX = 4096
NOBODY = 65534
PR_SET_NO_NEW_PRIVS = 38
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
CAPABILITY_VERSION_3 = 0x20080522
MEMORY_MAX = 256 << 20
CPU_SECONDS_MAX = 5
DESCRIPTION = "meshd"
ONLY_PERMANENT = "OnlyPermanentLeasesSupported"  # error 725 of WANIPConnection:1
_NOT_A_WORD = re.compile(r"[^A-Za-z0-9 _-]+")


def main() -> int:
    """Answer one question."""
    question = json.loads(sys.stdin.buffer.readline(QUESTION_BYTES_MAX))
    try:
        from miniupnpc import UPnP
    except ImportError:
        return _answer({"error": "Missing"})
    lay_down_rights()
    try:
        return _answer(ask(UPnP(), question))
    except Exception as exc:
        if type(exc) is not Exception:
            raise  # a mistake of ours: the library raises the base class itself, and nothing else
        words = _NOT_A_WORD.sub(" ", str(exc)).strip()[:80]
        return _answer({"error": words if words[:1].isalpha() else "Failed"})


def ask(device: Any, question: dict[str, Any]) -> dict[str, Any]:  # noqa: ANN401 - ships no types
    """Have the router map a port, or end that."""
    control = device.selectigd(question["location"])
    if urlsplit(control).hostname != question["gateway"]:
        return {"error": "Control URL is not on the router"}
    port, lifetime = question["external_port"], question["lifetime"]
    if not lifetime:
        device.deleteportmapping(port, "UDP")
        return {"address": "0.0.0.0", "external_port": port, "lifetime": 0}  # noqa: S104
    address = device.externalipaddress()
    asked = (port, "UDP", question["host"], question["port"], DESCRIPTION, "")
    try:
        device.addportmapping(*asked, lifetime)
    except Exception as exc:
        if str(exc) != ONLY_PERMANENT:
            raise
        device.addportmapping(*asked, 0)
        lifetime = 0
    return {"address": address, "external_port": port, "lifetime": lifetime}


def lay_down_rights() -> None:
    """Become nobody, for good, with little of everything."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot renounce new privileges")
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _drop_capabilities(libc)
    limits = {
        resource.RLIMIT_AS: MEMORY_MAX,
        resource.RLIMIT_CPU: CPU_SECONDS_MAX,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Drop what a daemon that is not root was given by systemd, and its children inherit."""
    number = SYS_CAPSET.get(os.uname().machine)
    if number is None:
        return  # the wheels of miniupnpc are for these machines
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.syscall(number, ctypes.byref(header), ctypes.byref(nothing)):
        raise OSError(ctypes.get_errno(), "cannot drop capabilities")


def _answer(answer: dict[str, Any]) -> int:
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
