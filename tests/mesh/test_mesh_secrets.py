"""A whole life of a mesh, and no secret of it in anything that a mesh puts out.

What was used is read from the disks of the members; what is searched is all that others could see
or an operator might pass on: logs at level debug, answers on the control sockets, what meshctl
prints, command lines and environments of processes, nft's rules, frames on the wire, and files
that other users may read.
"""

import base64
import contextlib
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from control.scripted import ScriptedController
from lablib import lan, mesh, wait_until
from mesh.meshes import mesh_of
from mesh.secret_search import Search, forms_of
from meshd.control.api import make_routes
from meshd.trust.invite import parse_token_untrusted
from meshd.trust.secret import derive

STATE = "/var/lib/meshd/mesh0"
WORDS = [
    *(["status"], ["peers"], ["events"], ["invites"], ["keys"], ["audit"], ["pending"]),
    *(["ping", "b", "-c", "1"], ["wait", "--members", "2"]),
]
DEBUG = {"MESHD_LOG_LEVEL": "debug", "MESHD_LOG_FORMAT": "json"}
PATIENCE = 60.0

netns = pytest.mark.netns


# The search itself: one that finds nothing where something is would be worth nothing.


@pytest.mark.parametrize("secret", [bytes(range(200, 232)), b"correct horse battery"])
def test_a_secret_is_found_in_every_form_and_place(secret):
    search = Search()
    search.add("it", secret)
    for before in (b"", b"a", b"ab", b"abc", b"abcd"):
        inside = before + secret + b"behind"
        shown = [inside.hex(), inside.hex().upper(), repr(inside), str({"key": inside})]
        shown += [base64.b64encode(inside).decode(), base64.urlsafe_b64encode(inside).decode()]
        shown += [base64.b32encode(inside).decode(), base64.b32encode(inside).decode().lower()]
        for text in shown:
            assert search.found_in(f"... {text} ..."), (before, text)
        assert search.found_in(b"\0" + inside)
    assert not search.found_in("nothing of the kind" * 100)
    assert all(len(text) >= 8 for text in forms_of(secret).values())


# What a mesh has


def learn_disk(search, node, copies):
    """Take every secret from a member's state."""
    state = node.file(STATE)
    search.add(f"{node.name}'s node key", base64.b64decode((state / "node.key").read_text()))
    # SQLite follows the way into the node's own files by itself, and ends up in the host's.
    copy = copies / f"{node.name}-{len(list(copies.iterdir()))}"
    shutil.copytree(state, copy)
    with contextlib.closing(sqlite3.connect(copy / "mesh.db")) as database:
        for name, value in database.execute("SELECT name, value FROM secrets"):
            search.add(f"{node.name}'s {name}", bytes(value))
        for peer, key in database.execute("SELECT node, key FROM preshared_keys"):
            search.add(f"{node.name}'s key with {peer.hex()[:8]}", bytes(key))


def learn_token(search, text):
    token = parse_token_untrusted(text)
    search.add("token", text.encode())
    search.add("token's body", base64.urlsafe_b64decode(text.partition(".")[2] + "==="))
    search.add("invite key", token.invite_key.seed)
    search.add("bootstrap key", bytes(token.bootstrap_key))


# What it shows


def shown_by(node):
    """Return what a member says to those who ask, by what was asked."""
    shown = {"log": node.log_text()}
    for method, path in make_routes(ScriptedController()):
        if method == "GET":
            with contextlib.suppress(Exception):  # one that wants more than a path
                shown[path] = str(node.control(path))
    shown["nft list ruleset"] = node.run(["nft", "list", "ruleset"]).stdout
    assert {"/v1/status", "/v1/peers", "/v1/events", "/v1/invites", "/v1/keys"} <= shown.keys()
    assert all(shown.values()), "all of them say something"
    return shown


def printed_by(node):
    """Return what meshctl prints, as text and as JSON."""
    outputs = {}
    for words in WORDS:
        for form in ([], ["--json"]):
            done = node.meshctl(*words, *form, check=False)
            outputs[" ".join(["meshctl", *words, *form])] = done.stdout + done.stderr
    assert outputs["meshctl status"], "meshctl says something"
    return outputs


def processes_of(node):
    """Return the processes in a node's namespaces."""
    inode = Path(f"/proc/{node.namespace.pid}/ns/net").stat().st_ino
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "ns/net").stat().st_ino == inode:
                yield entry


def readable_files(node):
    """Return the files of a node's own that others than root may read."""
    for folder in ("/etc/meshd", "/var/lib/meshd", "/run/meshd", "/run/wireguard"):
        root = node.file(folder)
        for path in [root, *root.rglob("*")] if root.exists() else []:
            hidden = any(
                not (parent.stat().st_mode & stat.S_IXOTH)
                for parent in path.parents
                if parent.is_relative_to(root)
            )
            if path.is_file() and not hidden and path.stat().st_mode & stat.S_IROTH:
                yield path


def check_processes(search, node):
    seen = 0
    for process in processes_of(node):
        command = (process / "cmdline").read_bytes()
        assert not search.found_in(command), f"{node.name}: {command!r}"
        environment = process / "environ"
        assert not environment.stat().st_mode & 0o077, "others may read the environment"
        assert not search.found_in(environment.read_bytes()), f"environment of {command!r}"
        seen += b"meshd" in command
    assert seen, f"no meshd on {node.name}"


def check_files(search, node):
    state = node.file(STATE)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for path in state.iterdir():
        assert not path.stat().st_mode & 0o077, path
    assert stat.S_IMODE(node.file("/run/meshd/mesh0.sock").stat().st_mode) == 0o660
    for path in node.file("/run/wireguard").glob("*.sock"):
        assert not path.stat().st_mode & stat.S_IWOTH, f"others could ask {path} for the key"
    for path in readable_files(node):
        assert not search.found_in(path.read_bytes()), path


def check_all(search, nodes, captures):
    for node in nodes:
        for what, text in shown_by(node).items():
            assert not search.found_in(text), f"{node.name}: {what}"
        check_files(search, node)
        check_processes(search, node)
    for what, text in printed_by(nodes[0]).items():
        assert not search.found_in(text), what
    for capture in captures:
        packets = list(capture.packets())
        assert packets, "nothing was captured"
        assert not search.found_in(b"".join(packet.payload for packet in packets))


# Its lives


def start(node, *arguments):
    node.start_daemon(*arguments, "--name", node.name, env=DEBUG)


def wait_preshared(*nodes):
    """Wait until each has agreed on a pre-shared key with every other."""
    wait_until(
        lambda: all(m["psk_age_s"] is not None for n in nodes for m in n.status()["members"]),
        "each pair has a pre-shared key",
        timeout=PATIENCE,
    )


def written(node, path, text):
    file = node.file(path)
    file.touch(mode=0o600)
    file.write_text(text + "\n")
    return path


@pytest.mark.long
@netns
def test_no_secret_of_a_mesh_of_tokens_is_in_anything_it_puts_out(tmp_path):
    search = Search()
    with mesh_of(lan(4)) as lab:
        a, b, c, late = lab.nodes
        captures = [node.capture("udp") for node in (a, b)]
        start(a, "--init")
        mesh.wait_answering(a)
        for node in (b, c):
            token = a.meshctl("invite", *(["--admit"] if node is b else [])).stdout.splitlines()[0]
            learn_token(search, token)
            start(node, "--token-file", written(node, "/etc/meshd/token", token))
            lab.wait_whole(*lab.nodes[: lab.nodes.index(node) + 1])
        # One that is refused, and two mistakes that people make.
        start(late, "--token-file", written(late, "/etc/meshd/token", token))
        assert late.process.wait(PATIENCE) == 1
        assert "token" in late.log_text()
        cut = written(late, "/etc/meshd/cut", token[:-7])
        start(late, "--token-file", cut)
        assert late.process.wait(PATIENCE) == 2
        learn_disk(search, c, tmp_path)
        before = c.status()["self"]["public_key"]
        c.meshctl("keys", "rotate")
        wait_until(
            lambda: c.status()["self"]["public_key"] != before, "c has a new key", timeout=PATIENCE
        )
        lab.ping_all(a, b, c)
        b.stop_daemon()
        start(b)
        lab.wait_whole(a, b, c)
        wait_preshared(a, b, c)
        for node in (a, b, c):
            learn_disk(search, node, tmp_path)
        assert any("mesh-key" in name for name in search.names)
        assert any("key with" in name for name in search.names)

        check_all(search, [a, b, c], captures)
        assert not search.found_in(late.log_text())


@pytest.mark.long
@netns
def test_no_secret_of_a_mesh_of_one_secret_is_in_anything_it_puts_out(tmp_path):
    search = Search()
    with mesh_of(lan(2)) as lab:
        a, b = lab.nodes
        captures = [node.capture("udp") for node in lab.nodes]
        mesh_key, bootstrap_key = derive(lab.secret.encode())
        search.add("secret", lab.secret.encode())
        search.add("mesh key", mesh_key.seed)
        search.add("bootstrap key", bytes(bootstrap_key))
        secret_file = written(a, "/etc/meshd/secret", lab.secret)
        start(a, "--secret-file", secret_file)
        mesh.wait_answering(a)
        config = f'secret = "{lab.secret}"\nseed = ["{a.ipv4.ip}"]\n'
        start(b, "--config", written(b, "/etc/meshd/meshd.toml", config))
        lab.wait_whole(a, b)
        lab.ping_all(a, b)
        wait_preshared(a, b)
        for node in lab.nodes:
            learn_disk(search, node, tmp_path)
        assert any("key with" in name for name in search.names)

        check_all(search, [a, b], captures)
