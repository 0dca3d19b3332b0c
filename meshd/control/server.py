"""HTTP/1.1 on the control socket, by h11.

```
accept ─▶ read a request ─▶ handler ─┬─▶ one document ─▶ read the next …
              │                      │
              │ malformed, too long, └─▶ lines, until the generator ends ─▶ close
              ▼ too slow
        error, close         the client hangs up: a GET or lines are cancelled, a POST is finished
```

Everything a client may use up is bounded: connections, header and body bytes, header count, the
time for sending a request and for taking an answer.  A client that keeps a stream open without
reading it is cut off; no handler ever waits for it longer than `SEND_TIMEOUT`.
"""

from __future__ import annotations

import json
import math
from contextlib import aclosing, asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

import h11
import trio

from meshd import __version__
from meshd.control.events import TooSlow
from meshd.control.routes import ApiError, Lines, Reply, Request, bad_request
from meshd.errors import MeshdError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from meshd.control.routes import Document, Handler, Routes
    from meshd.control.socket import ControlSocket

CONNECTIONS_MAX = 64
HEADER_BYTES_MAX = 16 * 1024
HEADERS_MAX = 32
BODY_BYTES_MAX = 64 * 1024
QUERY_FIELDS_MAX = 32
RECEIVE_BYTES = 16 * 1024
EARLY_BYTES_MAX = 64 * 1024  # of further requests, sent before the answer to the present one
REQUEST_TIMEOUT = 10.0  # for sending a request, or for being idle between two
SEND_TIMEOUT = 10.0  # for taking what we send


async def serve(bound: ControlSocket, routes: Routes) -> None:
    """Answer requests until cancelled.  The caller closes the socket."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound.listener))
    connections = _Connections(routes)
    await trio.serve_listeners(connections.handle, [listener])


class _ClientGone(Exception):
    """The client has hung up, or does not take what it is sent."""


class _Connections:
    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._open = 0

    async def handle(self, stream: trio.SocketStream) -> None:
        self._open += 1
        try:
            connection = _Connection(stream, self._routes)
            if self._open > CONNECTIONS_MAX:
                await connection.refuse_service()
            else:
                await connection.run()
        except* _ClientGone:
            pass
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)


class _Connection:
    def __init__(self, stream: trio.SocketStream, routes: Routes) -> None:
        self._stream = stream
        self._routes = routes
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_BYTES_MAX)

    async def refuse_service(self) -> None:
        """Tell a client that it is one too many."""
        busy = f"{CONNECTIONS_MAX} clients are connected already"
        await self._send_error(ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "busy", busy))

    async def run(self) -> None:
        """Answer one request after another, as long as the client and HTTP allow."""
        while True:
            try:
                request = await self._receive_request()
            except h11.RemoteProtocolError as exc:
                await self._send_error(_protocol_error(exc))
                return
            except ApiError as exc:
                await self._send_error(exc)
                return
            if request is None:
                return
            await self._answer(request)
            if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                return
            self._http.start_next_cycle()

    async def _receive_request(self) -> Request | None:
        """Return the next request, None when the client has no more."""
        head: h11.Request | None = None
        body = bytearray()
        deadline = trio.current_time() + REQUEST_TIMEOUT
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._receive(deadline))
            elif isinstance(event, h11.Request):
                head = event
                if len(head.headers) > HEADERS_MAX:
                    raise bad_request(f"more than {HEADERS_MAX} headers")
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > BODY_BYTES_MAX:
                    raise ApiError(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        "too-large",
                        f"a request's body has at most {BODY_BYTES_MAX} bytes",
                    )
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _parse_request_untrusted(head, bytes(body))
            else:
                return None

    async def _receive(self, deadline: float = math.inf) -> bytes:
        try:
            with trio.fail_at(deadline):
                return bytes(await self._stream.receive_some(RECEIVE_BYTES))
        except trio.BrokenResourceError:
            raise _ClientGone from None
        except trio.TooSlowError:
            late = f"no whole request came within {REQUEST_TIMEOUT:g} s"
            raise ApiError(HTTPStatus.REQUEST_TIMEOUT, "too-slow", late) from None

    async def _answer(self, request: Request) -> None:
        result = await self._result(request)
        if isinstance(result, ApiError):
            await self._send_error(result)
        elif isinstance(result, Lines):
            async with self._while_heard():
                await self._send_lines(result)
        elif isinstance(result, Reply):
            try:
                await self._send_document(HTTPStatus.OK, result.document)
            finally:
                if result.afterwards is not None:
                    result.afterwards()

    async def _result(self, request: Request) -> Reply | Lines | ApiError | None:
        """Run the handler; None when the client has gone before it was done."""
        handler = self._routes.get((request.method, request.path))
        if handler is None:
            return _no_route(request, self._routes)
        if request.method != "GET":
            # What changes something is never broken off in the middle.
            return await _call(handler, request)
        async with self._while_heard():
            # A hang-up cancels this, and the function falls through to None.
            return await _call(handler, request)

    @asynccontextmanager
    async def _while_heard(self) -> AsyncIterator[None]:
        """Cancel the body when the client hangs up."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_for_hangup, nursery.cancel_scope)
            yield
            nursery.cancel_scope.cancel()

    async def _watch_for_hangup(self, scope: trio.CancelScope) -> None:
        early_bytes = 0
        while early_bytes <= EARLY_BYTES_MAX:
            early = await self._receive()
            if not early:
                break
            # What comes before the answer is the next request.
            self._http.receive_data(early)
            early_bytes += len(early)
        scope.cancel()

    async def _send_lines(self, lines: Lines) -> None:
        headers = [*_HEADERS, ("content-type", "application/x-ndjson"), ("connection", "close")]
        async with aclosing(lines.documents) as documents:
            await self._send(h11.Response(status_code=HTTPStatus.OK, headers=headers))
            try:
                async for document in documents:
                    await self._send(h11.Data(data=_encode(document)))
            except TooSlow as exc:
                await self._send(h11.Data(data=_encode(_error("too-slow", f"cut off: {exc}"))))
            except ApiError as exc:
                await self._send(h11.Data(data=_encode(exc.document())))
            except MeshdError as exc:
                await self._send(h11.Data(data=_encode(_error("unavailable", str(exc)))))
            await self._send(h11.EndOfMessage())

    async def _send_error(self, error: ApiError) -> None:
        await self._send_document(error.status, error.document())

    async def _send_document(self, status: HTTPStatus, document: Document) -> None:
        body = _encode(document)
        headers = [
            *_HEADERS,
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
        ]
        await self._send(
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join(self._http.send(event) or b"" for event in events)
        try:
            with trio.fail_after(SEND_TIMEOUT):
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.TooSlowError):
            raise _ClientGone from None


async def _call(handler: Handler, request: Request) -> Reply | Lines | ApiError:
    try:
        result = await handler(request)
    except ApiError as exc:
        return exc
    except MeshdError as exc:
        return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", str(exc))
    return Reply(result) if isinstance(result, dict) else result


def _error(code: str, message: str) -> Document:
    return {"error": {"code": code, "message": message}}


_HEADERS = [("server", f"meshd/{__version__}"), ("cache-control", "no-store")]


def _encode(document: Document) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _parse_request_untrusted(head: h11.Request, body: bytes) -> Request:
    """Raise ApiError for anything that is not a request to us."""
    try:
        target = urlsplit(head.target.decode("ascii"))
        query = parse_qsl(
            target.query,
            keep_blank_values=True,
            strict_parsing=bool(target.query),
            max_num_fields=QUERY_FIELDS_MAX,
            errors="strict",
        )
    except ValueError as exc:
        raise bad_request("malformed request target") from exc
    if len(dict(query)) != len(query):
        raise bad_request("a query field is given twice")
    return Request(
        method=head.method.decode("ascii"),
        path=target.path,
        query=dict(query),
        body=_parse_body_untrusted(body),
    )


def _parse_body_untrusted(body: bytes) -> Mapping[str, object]:
    if not body:
        return {}
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise bad_request("the body is not JSON") from exc
    if not isinstance(value, dict):
        raise bad_request("the body is not a JSON object")
    return value


def _no_route(request: Request, routes: Routes) -> ApiError:
    methods = sorted(method for method, path in routes if path == request.path)
    if methods:
        return ApiError(
            HTTPStatus.METHOD_NOT_ALLOWED,
            "wrong-method",
            f"{request.path} takes {' and '.join(methods)}",
        )
    return ApiError(
        HTTPStatus.NOT_FOUND, "unknown-route", f"meshd {__version__} does not know {request.path}"
    )


def _protocol_error(exc: h11.RemoteProtocolError) -> ApiError:
    status = HTTPStatus(exc.error_status_hint)
    code = "too-large" if status is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE else "bad-request"
    return ApiError(status, code, f"not HTTP as it should be: {exc}")
