"""The process that speaks UPnP: what it may, and what it says where things go wrong."""

import json
import os
import subprocess
import sys

import pytest
import trio

from meshd.net import portmap
from meshd.net.portmap import UPNP_CLIENT, call_upnp
from meshd.portmap import upnp

pytestmark = pytest.mark.netns

ROUTER = "127.0.0.1"
QUESTION = {
    "location": f"http://{ROUTER}:9/d.xml", "gateway": ROUTER, "host": ROUTER,
    "port": 51820, "external_port": 51820, "lifetime": 7200,
}  # fmt: skip

PROBE = """
import json, os, runpy, socket, sys
client = runpy.run_path(sys.argv[1], run_name="client")
client["lay_down_rights"]()
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
tried = {}
def attempt(name, act):
    try:
        act()
        tried[name] = "done"
    except (OSError, MemoryError) as exc:
        tried[name] = type(exc).__name__
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("mark", lambda: socket.socket().setsockopt(socket.SOL_SOCKET, 36, 1))
attempt("root", lambda: os.setuid(0))
attempt("memory", lambda: bytearray(1 << 30))
sys.stdout.write(json.dumps([status["CapEff"].strip(), status["CapPrm"].strip(),
                             status["Uid"].split(), status["NoNewPrivs"].strip(), tried]))
"""


def test_it_can_do_nothing_but_talk():
    argv = [sys.executable, "-I", "-c", PROBE, str(UPNP_CLIENT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)

    effective, permitted, users, renounced, tried = json.loads(done.stdout)

    assert int(effective, 16) == int(permitted, 16) == 0
    assert users == ["65534"] * 4
    assert renounced == "1"
    assert tried["fork"] == "BlockingIOError"
    assert tried["mark"] == "PermissionError"
    assert tried["root"] == "PermissionError"
    assert tried["memory"] == "MemoryError"


def ask(**question):
    line = json.dumps(QUESTION | question).encode() + b"\n"
    return upnp.answer_untrusted(trio.run(call_upnp, line))


def test_a_router_that_is_not_there_is_an_answer():
    assert isinstance(ask(), upnp.Refused)


@pytest.mark.slow
def test_a_process_that_hangs_is_ended(monkeypatch, tmp_path):
    marker = tmp_path / "pid"
    hanging = tmp_path / "hanging.py"
    hanging.write_text(
        f"import os, time\nopen({str(marker)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(portmap, "UPNP_CLIENT", hanging)
    monkeypatch.setattr(portmap, "UPNP_TIMEOUT", 2.0)

    assert trio.run(call_upnp, b"{}\n") == b""

    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


def test_a_process_that_says_too_much_is_ended(monkeypatch, tmp_path):
    talking = tmp_path / "talking.py"
    talking.write_text("while True:\n    print('x' * 4096)\n")
    monkeypatch.setattr(portmap, "UPNP_CLIENT", talking)

    answer = trio.run(call_upnp, b"{}\n")

    assert len(answer) <= 2 * (upnp.ANSWER_BYTES_MAX + 1)
