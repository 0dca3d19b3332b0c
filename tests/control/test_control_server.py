from __future__ import annotations

import json
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from control.scripted import ScriptedController, serving
from meshd.control import server
from meshd.control.events import BACKLOG_MAX
from meshd.control.socket import ControlSocket
from meshd.errors import StartError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def exchange(path: Path, sent: bytes) -> tuple[int, dict]:
    """Send bytes and read until the server closes or has answered."""
    stream = await trio.open_unix_socket(path)
    async with stream:
        await stream.send_all(sent)
        return await read_answer(stream)


async def read_answer(stream) -> tuple[int, dict]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await receive(stream)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    while len(body) < int(headers["content-length"]):
        body += await receive(stream)
    return int(lines[0].split()[1]), json.loads(body)


async def receive(stream) -> bytes:
    data = await stream.receive_some()
    assert data, "the server hung up"
    return bytes(data)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.lowlevel.checkpoint()


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nhost: meshd\r\n\r\n".encode()


def post(target: str, body: bytes) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nhost: meshd\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def test_a_request_is_answered_with_its_document(tmp_path: Path) -> None:
    async with serving(ScriptedController(), tmp_path) as path:
        status, document = await exchange(path, get("/v1/status"))
    assert status == 200
    assert document["schema"] == "meshd.status/1"


async def test_one_connection_carries_several_requests_even_sent_at_once(tmp_path: Path) -> None:
    async with (
        serving(ScriptedController(), tmp_path) as path,
        await trio.open_unix_socket(path) as stream,
    ):
        for _ in range(2):
            await stream.send_all(get("/v1/status"))
            assert (await read_answer(stream))[0] == 200
        await stream.send_all(get("/v1/wait?members=9&timeout=0.05") + get("/v1/peers"))
        assert (await read_answer(stream))[1]["schema"] == "meshd.wait/1"
        assert (await read_answer(stream))[1]["schema"] == "meshd.peers/1"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"hello\r\n\r\n", 400, "bad-request"),
        (get("/v1/nothing"), 404, "unknown-route"),
        (post("/v1/status", b""), 405, "wrong-method"),
        (get("/v1/status?x=1"), 400, "bad-request"),
        (get("/v1/status?x"), 400, "bad-request"),
        (get("/v1/wait?members=1&members=2"), 400, "bad-request"),
        (get("/v1/wait?members=nan"), 400, "bad-request"),
        (get("/v1/wait?state=alive"), 400, "bad-request"),
        (get("/v1/wait?path=sideways"), 400, "bad-request"),
        (get("/v1/wait?members=1.5"), 400, "bad-request"),
        (get("http://[/v1/status"), 400, "bad-request"),
        (post("/v1/ping", b"{"), 400, "bad-request"),
        (post("/v1/ping", b"[" * 5000), 400, "bad-request"),
        (post("/v1/ping", b"[]"), 400, "bad-request"),
        (post("/v1/ping", b"{}"), 400, "bad-request"),
        (post("/v1/ping", b'{"name": 1}'), 400, "bad-request"),
        (post("/v1/ping", b'{"name": "b", "count": true}'), 400, "bad-request"),
        (post("/v1/ping", b'{"name": "b", "cuont": 1}'), 400, "bad-request"),
        (post("/v1/ping", b'{"name": "x"}'), 404, "unknown-member"),
        (post("/v1/invites", b'{"routes": ["10.0.0.1/8"]}'), 400, "bad-request"),
        (post("/v1/invites", b'{"tags": ["Not A Tag"]}'), 400, "bad-request"),
        (post("/v1/invites", b'{"name": "-"}'), 400, "bad-request"),
        (post("/v1/invites", b'{"name": "x", "uses": 0}'), 400, "bad-request"),
        (post("/v1/invites", b'{"lifetime": 1e400}'), 400, "bad-request"),
        (post("/v1/ping", bytes(server.BODY_BYTES_MAX + 1)), 413, "too-large"),
        (get("/" + "x" * 2 * server.HEADER_BYTES_MAX), 431, "too-large"),
        (
            b"GET / HTTP/1.1\r\nhost: m\r\n" + b"a: b\r\n" * server.HEADERS_MAX + b"\r\n",
            400,
            "bad-request",
        ),
    ],
)
async def test_what_cannot_be_granted_is_refused_in_json(
    tmp_path: Path, sent: bytes, status: int, code: str
) -> None:
    async with serving(ScriptedController(), tmp_path) as path:
        answer = await exchange(path, sent)
        assert answer[0] == status
        assert answer[1]["error"]["code"] == code
        assert answer[1]["error"]["message"]
        assert (await exchange(path, get("/v1/status")))[0] == 200


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_whatever_stop_the_server(tmp_path_factory, sent: bytes) -> None:
    async def main() -> None:
        directory = tmp_path_factory.mktemp("run")
        async with serving(ScriptedController(), directory) as path:
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(sent + b"\r\n\r\n")
                with trio.move_on_after(0.01):
                    await stream.receive_some()
            assert (await exchange(path, get("/v1/status")))[0] == 200

    trio.run(main)


async def test_an_error_of_the_daemon_s_is_answered_not_raised(tmp_path: Path) -> None:
    controller = ScriptedController()

    async def full(_: object) -> None:
        raise StoreError("the disk is full")

    controller.invite = full  # type: ignore[method-assign, assignment]
    async with serving(controller, tmp_path) as path:
        status, document = await exchange(path, post("/v1/invites", b"{}"))
    assert (status, document) == (
        503,
        {"error": {"code": "unavailable", "message": "the disk is full"}},
    )


async def test_who_sends_no_whole_request_in_time_is_told_and_cut_off(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT", 0.05)
    async with serving(ScriptedController(), tmp_path) as path:
        status, document = await exchange(path, b"GET /v1/sta")
    assert (status, document["error"]["code"]) == (408, "too-slow")


async def test_one_client_too_many_is_told_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 2)
    async with serving(ScriptedController(), tmp_path) as path:
        first, second = [await trio.open_unix_socket(path) for _ in range(2)]
        async with first, second:
            for stream in (first, second):
                await stream.send_all(get("/v1/status"))
                assert (await read_answer(stream))[0] == 200
            status, document = await exchange(path, get("/v1/status"))
            assert (status, document["error"]["code"]) == (503, "busy")


async def test_a_wait_ends_when_its_client_hangs_up(tmp_path: Path) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path) as path:
        stream = await trio.open_unix_socket(path)
        await stream.send_all(get("/v1/events?follow=1"))
        await until(lambda: controller.events.listeners == 1)
        await stream.aclose()
        await until(lambda: controller.events.listeners == 0)


async def test_a_change_is_finished_even_if_its_client_hangs_up(tmp_path: Path) -> None:
    controller = ScriptedController()
    going, go = trio.Event(), trio.Event()

    async def leave() -> None:
        going.set()
        await go.wait()
        controller.asked.append("left")

    controller.leave = leave  # type: ignore[method-assign]
    async with serving(controller, tmp_path) as path:
        stream = await trio.open_unix_socket(path)
        await stream.send_all(post("/v1/leave", b""))
        await going.wait()
        await stream.aclose()
        go.set()
        with trio.fail_after(5):
            await controller.stopped.wait()
    assert controller.asked == ["left"]


async def test_leaving_is_answered_before_the_daemon_ends(tmp_path: Path) -> None:
    controller = ScriptedController()
    async with serving(controller, tmp_path) as path:
        status, document = await exchange(path, post("/v1/leave", b""))
        assert (status, document["left"]) == (200, True)
        assert controller.stopped.is_set()


async def test_a_reader_that_does_not_keep_up_is_told_and_cut_off(tmp_path: Path) -> None:
    controller = ScriptedController()
    async with (
        serving(controller, tmp_path) as path,
        await trio.open_unix_socket(path) as stream,
    ):
        await stream.send_all(get("/v1/events?follow=1"))
        received = await receive(stream)
        await until(lambda: controller.events.listeners == 1)
        # In one step, as when a thousand members join: nobody can read in between.
        for _ in range(2 * BACKLOG_MAX):
            controller.happen("member-joined")
        with trio.fail_after(5):
            while data := await stream.receive_some():
                received += data
    # The reader was waiting, so one event did not have to be kept for it.
    assert received.count(b'"member-joined"') == BACKLOG_MAX + 1
    assert b'{"error":{"code":"too-slow"' in received


async def test_a_reader_that_reads_nothing_is_cut_off(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(server, "SEND_TIMEOUT", 0.05)
    controller = ScriptedController()
    async with (
        serving(controller, tmp_path) as path,
        await trio.open_unix_socket(path) as stream,
    ):
        await stream.send_all(get("/v1/events?follow=1"))
        await until(lambda: controller.events.listeners == 1)
        with trio.fail_after(10):
            while controller.events.listeners:
                controller.happen("path-changed", reason="x" * 4000)
                await trio.lowlevel.checkpoint()


# The socket's file


def test_only_owner_and_group_can_use_the_socket(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        bound = ControlSocket.listen(tmp_path / "run" / "meshd" / "mesh0.sock")
    finally:
        os.umask(before)
    assert stat.S_IMODE(bound.path.stat().st_mode) == 0o660
    assert stat.S_IMODE(bound.path.parent.stat().st_mode) == 0o755
    bound.close()
    assert not bound.path.exists()


def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mesh0.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    ControlSocket.listen(path).close()
    assert not path.exists()


def test_a_socket_that_answers_is_left_alone(tmp_path: Path) -> None:
    bound = ControlSocket.listen(tmp_path / "mesh0.sock")
    with pytest.raises(StartError, match="another daemon answers there"):
        ControlSocket.listen(bound.path)
    assert bound.path.exists()
    bound.close()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mesh0.sock"
    path.write_text("precious")
    with pytest.raises(StartError, match="is there and is no socket"):
        ControlSocket.listen(path)
    assert path.read_text() == "precious"


def test_closing_does_not_remove_a_successor_s_socket(tmp_path: Path) -> None:
    path = tmp_path / "mesh0.sock"
    first = ControlSocket.listen(path)
    path.rename(tmp_path / "away")
    second = ControlSocket.listen(path)
    first.close()
    assert path.exists()
    second.close()


@pytest.mark.parametrize("name", ["x" * 120, "\N{SNOWMAN}" * 40])
def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError, match="at most 107 bytes; choose a shorter --runtime-dir"):
        ControlSocket.listen(tmp_path / name / "mesh0.sock")
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"cannot listen there: Not a directory"):
        ControlSocket.listen(tmp_path / "file" / "mesh0.sock")
