from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from control.scripted import ME, MESH, ScriptedController, member, node_id, serving
from meshd import meshctl
from meshd.control.invites import InviteRequest
from meshd.control.snapshot import HealthFinding
from meshd.ctl import commands, render
from meshd.ctl.render import Screen

ROOT = Path(__file__).parent.parent
IMPORTS_THAT_TAKE_LONG = ("trio", "nacl", "pyroute2", "msgpack", "http.client", "logging")


@pytest.fixture
def ctl(tmp_path: Path):
    """Run meshctl against the sockets in `tmp_path`, in a thread."""

    async def run(*arguments: str) -> int:
        argv = ["--runtime-dir", str(tmp_path), *arguments]
        return await trio.to_thread.run_sync(partial(meshctl.main, argv))

    return run


async def test_status_shows_self_a_line_a_member_then_health(tmp_path, ctl, capsys) -> None:
    async with serving(ScriptedController(), tmp_path):
        assert await ctl("status") == 0
    assert capsys.readouterr().out == (
        "a  100.64.0.1  fd00::1\n"
        "mesh0, kernel WireGuard, port 51820, up 12s\n"
        "mesh home: 3 members, 2 alive, 1 dead\n"
        "audit log: 3:0707070707070707\n"
        "\n"
        "NAME  ADDRESS     STATE  PATH                      RTT    SHAKE  PQ   RX/TX\n"
        "b     100.64.0.2  alive  direct 203.0.113.7:51820  1.3ms  14s    yes  1.2M/512\n"
        "c     100.64.0.3  dead   -                         -      -      yes  1.2M/512\n"
        "\n"
        "warning: no answer on UDP port 51820 [udp-blocked]\n"
    )


@pytest.mark.parametrize(
    ("post_quantum", "psk_age", "shown"),
    [(True, 90.0, "yes"), (False, 90.0, "soon"), (False, None, "-")],
)
async def test_status_says_whose_session_no_quantum_computer_opens(
    tmp_path, ctl, capsys, post_quantum, psk_age, shown
) -> None:
    b = member("b", 2, post_quantum=post_quantum, psk_age=psk_age)
    async with serving(ScriptedController(replace(MESH, members=(b,))), tmp_path):
        assert await ctl("status") == 0
    title, line = capsys.readouterr().out.splitlines()[5:7]
    assert line[title.index("PQ") :].split()[0] == shown


@pytest.mark.parametrize("place", ["before", "after"])
async def test_json_may_be_asked_for_before_and_after_the_command(
    tmp_path, ctl, capsys, place
) -> None:
    arguments = ("--json", "status") if place == "before" else ("status", "--json")
    async with serving(ScriptedController(), tmp_path):
        assert await ctl(*arguments) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["self"]["name"] == "a"
    assert out.count("\n") == 1


@pytest.mark.parametrize("ready", [True, False])
async def test_check_tells_live_from_ready(tmp_path, ctl, capsys, ready) -> None:
    controller = ScriptedController(replace(MESH, me=replace(ME, ready=ready)))
    async with serving(controller, tmp_path):
        assert await ctl("status", "--check", "live") == 0
        assert await ctl("status", "--check", "ready") == (0 if ready else 1)
    assert capsys.readouterr().out == f"live\n{'ready' if ready else 'not ready'}\n"


async def test_peers_and_invites_are_tables(tmp_path, ctl, capsys) -> None:
    async with serving(ScriptedController(), tmp_path):
        assert await ctl("peers") == 0
        assert await ctl("invites") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        *("b", "[2001:db8::7]:51820", "100.64.0.2/32", "fd00::2/128", "14s", "1.2M", "512")
    ]
    issued, expires = ("2023-11-14", "22:13:20Z"), ("2023-11-14", "23:13:20Z")
    assert lines[3].split() == ["aucqkbifau", "used", *issued, *expires, "0/1", "tag=web", "b"]
    assert lines[4].split()[1:] == ["unknown", "-", "-", "1/3", "(another", "member's)", "b", "c"]


# ping


async def test_ping_tells_of_each_answer_and_sums_up(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController(rtts=[0.0012, None, 0.0018])
    async with serving(controller, tmp_path):
        assert await ctl("ping", "b", "-c", "3", "-i", "10ms") == 0
    assert capsys.readouterr().out == (
        "b: answer 1 in 1.2ms, direct 203.0.113.7:51820\n"
        "b: no answer to 2\n"
        "b: answer 3 in 1.8ms, direct 203.0.113.7:51820\n"
        "b: 3 sent, 2 answered, min/mean/max 1.2ms/1.5ms/1.8ms\n"
    )
    assert controller.asked == [("ping", node_id(2))] * 3


async def test_ping_without_any_answer_fails(tmp_path, ctl, capsys) -> None:
    async with serving(ScriptedController(rtts=[None]), tmp_path):
        assert await ctl("ping", "b", "-c", "1", "--json") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["schema"] for line in lines] == ["meshd.ping/1", "meshd.ping-summary/1"]


async def test_an_unknown_member_is_named_with_near_matches(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController(replace(MESH, members=(member("web-1", 2),)))
    async with serving(controller, tmp_path):
        assert await ctl("ping", "web") == 1
    assert capsys.readouterr().err == ("meshctl: no member is called 'web'; did you mean web-1?\n")


# wait


async def test_wait_returns_as_soon_as_the_condition_holds(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController()
    whole = replace(MESH, members=(member("b", 2), member("c", 3)))
    async with serving(controller, tmp_path), trio.open_nursery() as nursery:
        statuses = []

        async def wait() -> None:
            statuses.append(await ctl("wait", "--members", "3", "--timeout", "30s"))

        nursery.start_soon(wait)
        await controller.looked.wait()
        assert statuses == []
        controller.happen("member-alive", whole)
    assert statuses == [0]
    assert capsys.readouterr().out.startswith("holds after 0.")


async def test_wait_notices_what_is_no_event(tmp_path, ctl) -> None:
    controller = ScriptedController(replace(MESH, members=(member("b", 2, path=None),)))
    async with serving(controller, tmp_path), trio.open_nursery() as nursery:

        async def wait() -> None:
            assert await ctl("wait", "--path", "direct", "--timeout", "30s") == 0

        nursery.start_soon(wait)
        await controller.looked.wait()
        controller.mesh = MESH


async def test_wait_fails_at_its_timeout_and_says_what_it_lacked(tmp_path, ctl, capsys) -> None:
    async with serving(ScriptedController(), tmp_path):
        assert await ctl("wait", "--name", "c", "--state", "alive", "--timeout", "0.1") == 1
    assert re.fullmatch(r"does not hold after 0\.\d s: c is dead\n", capsys.readouterr().out)


async def test_wait_with_a_timeout_also_waits_for_the_daemon(tmp_path, monkeypatch) -> None:
    tried = trio.Event()

    def sleep(seconds: float) -> None:
        trio.from_thread.run_sync(tried.set)
        time.sleep(seconds)

    monkeypatch.setattr(commands, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    arguments = ["--socket", str(tmp_path / "mesh0.sock"), "wait", "--timeout", "30"]
    async with trio.open_nursery() as nursery:
        done = trio.Event()

        async def wait() -> None:
            assert await trio.to_thread.run_sync(meshctl.main, arguments) == 0
            done.set()

        nursery.start_soon(wait)
        await tried.wait()
        async with serving(ScriptedController(), tmp_path):
            await done.wait()


async def test_wait_for_a_daemon_that_does_not_come_tells_it_apart(tmp_path, ctl) -> None:
    assert await ctl("--interface", "mesh0", "wait", "--timeout", "0.1") == 3
    assert await ctl("--interface", "mesh0", "wait") == 3


# invite, events, leave, forget


async def test_invite_gives_the_token_alone_on_standard_output(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        granted = ("--tag", "web", "--tag", "db", "--advertise", "10.0.0.0/8", "--admit")
        assert await ctl("invite", "--expires", "7d", "--name", "web-1", *granted) == 0
    captured = capsys.readouterr()
    assert captured.out == "meshd1.token\n"
    assert "Treat it as a password" in captured.err
    (asked,) = controller.asked
    assert isinstance(asked, InviteRequest)
    assert (asked.lifetime, asked.uses, asked.admit) == (7 * 86400, 1, True)
    assert (asked.name, asked.tags) == ("web-1", ("web", "db"))
    assert [str(route) for route in asked.routes] == ["10.0.0.0/8"]


@pytest.mark.parametrize(
    ("flags", "seconds"),
    [((), 365 * 86400), (("--lifetime", "30d"), 30 * 86400), (("--lifetime", "0"), 0)],
)
async def test_an_invite_says_how_long_a_credential_lives(tmp_path, ctl, flags, seconds) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("invite", *flags) == 0
    assert [asked.credential_lifetime for asked in controller.asked] == [seconds]


@pytest.mark.parametrize("span", ["5s", "20000d", "soon", "-1s"])
async def test_a_credential_that_could_not_be_renewed_in_time_is_refused(ctl, capsys, span) -> None:
    assert await ctl("invite", "--lifetime", span) == 2
    assert "--lifetime" in capsys.readouterr().err


async def test_who_may_not_invite_is_told_so(tmp_path, ctl, capsys) -> None:
    async with serving(ScriptedController(may_invite=False), tmp_path):
        assert await ctl("invite") == 4
    assert "has no `admit`" in capsys.readouterr().err


async def test_events_are_shown_oldest_first_and_as_many_as_asked(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController()
    for event in ("member-joined", "member-suspect", "member-dead"):
        controller.happen(event, reason="no ack")
    async with serving(controller, tmp_path):
        assert await ctl("events", "-n", "2") == 0
        assert await ctl("events", "-n", "1", "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "2023-11-14T22:13:20.000Z  member-suspect  b  b: member-suspect  reason=no ack",
        "2023-11-14T22:13:20.000Z  member-dead  b  b: member-dead  reason=no ack",
    ]
    assert json.loads(lines[2])["event"] == "member-dead"


async def test_events_are_followed_until_the_daemon_ends(tmp_path) -> None:
    controller = ScriptedController()
    controller.happen("member-joined")
    command = [sys.executable, "-m", "meshd.meshctl", "--runtime-dir", str(tmp_path)]
    command += ["events", "-f", "-n", "1", "--json"]
    async with trio.open_nursery() as nursery:
        async with serving(controller, tmp_path):
            process = await nursery.start(
                partial(
                    trio.run_process,
                    command,
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    check=False,
                )
            )
            assert json.loads(await process.stdout.receive_some())["event"] == "member-joined"
            while not controller.events.listeners:
                await trio.lowlevel.checkpoint()
            controller.happen("path-changed", path="relayed")
            assert json.loads(await process.stdout.receive_some())["path"] == "relayed"
        with trio.fail_after(10):
            assert await process.wait() == 3


async def test_leave_and_forget_reach_the_daemon(tmp_path, ctl, capsys) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path):
        assert await ctl("forget", "c") == 0
        assert await ctl("forget", "b") == 1
        assert await ctl("leave") == 0
    assert controller.asked == [("forget", node_id(3)), "leave"]
    assert controller.stopped.is_set()
    assert "b is alive and would come back at once" in capsys.readouterr().err


# Which daemon


def test_without_a_daemon_it_says_what_was_looked_for(tmp_path, capsys) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        assert meshctl.main(["--runtime-dir", str(directory), "status"]) == 3
        error = capsys.readouterr().err
        assert f"no socket in {directory}" in error
        assert "start it with" in error
        assert error.count("\n") == 1


def test_the_socket_of_a_dead_daemon_is_told_apart(tmp_path, capsys) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "mesh0.sock"))
    assert meshctl.main(["--runtime-dir", str(tmp_path), "status"]) == 3
    assert "left by one that has ended" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_no_socket_is_not_taken_for_one(tmp_path, capsys, kind) -> None:
    path = tmp_path / "mesh0.sock"
    path.touch() if kind == "file" else path.mkdir()
    assert meshctl.main(["--socket", str(path), "status"]) == 3
    assert f"{path} is no socket" in capsys.readouterr().err


async def test_of_several_daemons_one_must_be_chosen(tmp_path, ctl, capsys) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "mesh1.sock"))
        async with serving(ScriptedController(), tmp_path) as path:
            assert await ctl("status") == 2
            assert "(mesh0, mesh1): choose one" in capsys.readouterr().err
            assert await ctl("status", "--interface", "mesh0") == 0
            assert await ctl("status", "--socket", str(path)) == 0


async def test_who_may_not_use_the_socket_is_told_so(tmp_path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else needs root")
    # A first run imports all there is: the interpreter may be out of a stranger's reach.
    script = (
        "import os, sys; from meshd import meshctl; os.chdir(sys.argv[1]); "
        "meshctl.main(['--socket', 'absent', 'status']); "
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        "sys.exit(meshctl.main(['--socket', 'mesh0.sock', 'status']))"
    )
    tmp_path.chmod(0o755)
    async with serving(ScriptedController(), tmp_path):
        ran = await trio.run_process(
            [sys.executable, "-c", script, str(tmp_path)],
            cwd=ROOT,
            capture_stderr=True,
            check=False,
        )
    assert ran.returncode == 4
    assert b"you may not use it" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a command is needed"),
        (["stats"], "invalid choice: 'stats'; did you mean status?"),
        (["admission"], "invalid choice: 'admission'; there are status, peers, ping"),
        (["keys", "shw"], "did you mean show?"),
        (["status", "--jsn"], "unknown option --jsn; did you mean --json?"),
        (["status", "extra"], "unknown argument extra"),
        (["status", "--check", "well"], "there are live, ready"),
        (["ping"], "the following arguments are required: NAME"),
        (["ping", "b", "-c", "0"], "must be a whole number from 1"),
        (["wait", "--timeout", "soon"], "'soon' must be a span of time"),
        (["invite", "--advertise", "10.0.0.1/8"], "did you mean 10.0.0.0/8?"),
        (["--interface", "no/such", "status"], "letters, digits"),
        (["--socket", "", "status"], "argument --socket: '' must not be empty"),
        (["status", "--runtime-dir", ""], "must not be empty"),
    ],
)
def test_usage_errors_are_one_line_and_status_two(capsys, arguments, said) -> None:
    assert meshctl.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("meshctl: ")
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("command", "name"), [("netcheck", "NAT"), ("peers", "WireGuard")])
def test_help_writes_names_as_they_are_written(capsys, command, name) -> None:
    with pytest.raises(SystemExit):
        meshctl.main([command, "--help"])
    assert name in capsys.readouterr().out


# Terminals


def on_a_terminal(arguments: list[str], *, columns: int, environment: dict[str, str]) -> str:
    """Run meshctl with a terminal as standard output, and return what it shows."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        [sys.executable, "-m", "meshd.meshctl", *arguments],
        cwd=ROOT,
        stdout=slave,
        env={**clean, "TERM": "xterm", **environment},
    ) as process:
        os.close(slave)
        shown = b""
        try:
            while data := os.read(master, 65536):
                shown += data
        except OSError:
            pass  # EIO: the other end is closed
        assert process.wait(10) == 0
    os.close(master)
    return shown.decode().replace("\r\n", "\n")


WIDE = replace(
    MESH,
    members=(
        member("a-rather-long-name-for-a-member-of-a-mesh", 2, rtt=0.1234),
        member("relayed", 3, state="suspect", path="relayed", relay="a-rather-long-name"),
    ),
)


@pytest.mark.parametrize("columns", [60, 80, 120])
async def test_status_fits_the_terminal(tmp_path, columns) -> None:
    async with serving(ScriptedController(WIDE), tmp_path) as path:
        shown = await trio.to_thread.run_sync(
            partial(
                on_a_terminal,
                ["--socket", str(path), "status"],
                columns=columns,
                environment={"NO_COLOR": "1"},
            )
        )
    lines = shown.splitlines()
    assert max(map(len, lines)) <= columns
    assert "alive" in lines[6]
    assert "123ms" in lines[6]


@pytest.mark.parametrize(
    ("arguments", "environment", "colours"),
    [
        ([], {}, True),
        (["--no-color"], {}, False),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"NO_COLOR": ""}, True),
        ([], {"TERM": "dumb"}, False),
    ],
)
async def test_there_are_colours_only_where_they_are_wanted(
    tmp_path, arguments, environment, colours
) -> None:
    async with serving(ScriptedController(), tmp_path) as path:
        shown = await trio.to_thread.run_sync(
            partial(
                on_a_terminal,
                ["--socket", str(path), *arguments, "status"],
                columns=80,
                environment=environment,
            )
        )
    assert ("\x1b[32malive\x1b[0m" in shown) == colours
    assert ("\x1b" in shown) == colours


def test_what_others_wrote_does_not_steer_the_terminal() -> None:
    event = {"at": "now", "event": "e", "member": None, "message": "\x1b[2J\nforged"}
    assert render.event_text(event) == "now  e  \\x1b[2J\\nforged"


def test_colours_do_not_move_columns() -> None:
    column = render.Column("STATE", colours=lambda _: "green")
    plain = render.table((column, render.Column("X")), [["alive", "1"], ["left", "2"]], Screen())
    painted = render.table(
        (column, render.Column("X")), [["alive", "1"], ["left", "2"]], Screen(colour=True)
    )
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in painted] == plain


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0K"), (1_300_000, "1.2M"), (2**40, "1.0T")],
)
def test_bytes_are_shown_in_three_digits(count, text) -> None:
    assert render.bytes_text(count) == text


# The process


async def test_watching_ends_quietly_when_interrupted(tmp_path) -> None:
    async with serving(ScriptedController(), tmp_path) as path, trio.open_nursery() as nursery:
        # A shell that starts tests in the background has its children ignore interrupts.
        script = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
            "from meshd.meshctl import main; sys.exit(main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", script, "--socket", str(path)]
        process = await nursery.start(
            partial(
                trio.run_process,
                [*command, "status", "--watch", "--json"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                check=False,
            )
        )
        await process.stdout.receive_some()
        process.send_signal(signal.SIGINT)
        with trio.fail_after(10):
            assert await process.wait() == 130
            assert await process.stderr.receive_some() == b""


async def test_a_reader_that_closes_the_pipe_is_no_error(tmp_path) -> None:
    controller = ScriptedController()
    for _ in range(1000):
        controller.happen("path-changed", reason="x" * 200)
    async with serving(controller, tmp_path) as path:
        ran = await trio.run_process(
            [
                "sh",
                "-c",
                f'"$0" -m meshd.meshctl --socket {path} events | head -n1',
                sys.executable,
            ],
            cwd=ROOT,
            capture_stdout=True,
            capture_stderr=True,
        )
    assert ran.stdout.count(b"\n") == 1
    assert ran.stderr == b""


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        (">/dev/full", 1, b"meshctl: cannot write the answer: No space left on device\n"),
        (">&-", 0, b""),
        (">&- 2>&-", 0, b""),
    ],
)
@pytest.mark.parametrize("command", ["status", "events"])
async def test_where_nothing_can_be_written_it_is_said_in_a_line(
    tmp_path, where, status, said, command
) -> None:
    controller = ScriptedController()
    controller.happen("path-changed", reason="x")
    async with serving(controller, tmp_path) as path:
        line = f'exec "$0" -m meshd.meshctl --socket {path} {command} {where}'
        ran = await trio.run_process(
            ["sh", "-c", line, sys.executable], cwd=ROOT, capture_stderr=True, check=False
        )
    assert (ran.returncode, ran.stderr) == (status, said)


def test_the_manual_names_every_document_that_scripts_get() -> None:
    inside = {"meshd.events/1", "meshd.mesh-key/1", "meshd.forget-mesh/1"}  # meshctl itself reads
    made = {
        schema
        for path in (ROOT / "meshd").rglob("*.py")
        for schema in re.findall(r'"(meshd\.[a-z-]+/\d+)"', path.read_text())
    }
    named = set(re.findall(r"`(meshd\.[a-z-]+/\d+)`", (ROOT / "docs/operations.md").read_text()))
    assert named == made - inside


def test_lists_in_an_event_are_written_for_people() -> None:
    shown = render.event_text(
        {"at": "T", "event": "member-dead", "member": "b", "message": "m", "accusers": ["c", "d"]}
    )
    assert shown == "T  member-dead  b  m  accusers=c,d"


def test_nothing_heavy_is_imported() -> None:
    script = (
        "import sys; from meshd import meshctl; meshctl.make_parser(); "
        f"print([name for name in {IMPORTS_THAT_TAKE_LONG!r} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


async def test_health_of_any_level_is_shown(tmp_path, ctl, capsys) -> None:
    findings = (HealthFinding("info", "x", "one"), HealthFinding("error", "y", "two\nlines"))
    async with serving(ScriptedController(replace(MESH, health=findings)), tmp_path):
        assert await ctl("status") == 0
    assert capsys.readouterr().out.endswith("\ninfo: one [x]\nerror: two\\nlines [y]\n")
