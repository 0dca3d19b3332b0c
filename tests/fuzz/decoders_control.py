"""What comes from this machine's own people: requests on the control socket, and configuration.

Whoever may open the socket or write the file may command the daemon; so what is searched for is a
mistake that ends it, or a secret in a complaint.
"""

import json
import os
from http import HTTPStatus
from pathlib import Path

import h11
import trio
import trio.testing

from control.scripted import NOW, ScriptedController, node_id
from fuzz.registry import Target, decoder, target
from meshd import config
from meshd.codec import pack, unpack_untrusted
from meshd.control.api import make_routes
from meshd.control.keys import KeysSnapshot
from meshd.control.rekeying import NodeKeyAnswer
from meshd.control.routes import ApiError
from meshd.control.sealing import NewBootstrapAnswer, NewRootAnswer
from meshd.control.server import _Connections
from meshd.errors import BadPacket, ConfigError
from meshd.keys import MeshId, WireGuardKey
from meshd.strongbox import Strongbox

SEED = bytes(32)
SECRET = "correct horse battery staple"
_HANG_UP = 60.0  # seconds until the client does, of a clock that only jumps
_HEAD = b"HTTP/1.1\r\nHost: meshd\r\n"


class _Controller(ScriptedController):
    """Grants what the scripted one leaves to tests of its own."""

    def keys(self):
        key = WireGuardKey(SEED)
        return KeysSnapshot(
            *(node_id(1), MeshId(SEED), MeshId(SEED), key),
            *(NOW, 1.0, None, None),
            rotating=False,
            bootstrap_epoch=0,
            bootstrap_key_held=True,
        )

    async def rotate_key(self):
        pass

    def node_key(self):
        return NodeKeyAnswer(node_id(1), "a", None, "fd00::1", phase=None, trouble="", invites=0)

    async def rotate_node_key(self, *, sure):
        return self.node_key()

    async def seal(self, secret, *, sure):
        return NewRootAnswer(done=sure, root=MeshId(SEED), members=())

    async def rotate_mesh_key(self, overlap, mesh_key, *, sure):
        return NewRootAnswer(done=sure, root=MeshId(SEED), members=())

    def mesh_key(self):
        return MeshId(SEED), "the key"

    def forget_mesh_key(self, root):
        raise ApiError(HTTPStatus.CONFLICT, "not-held", f"{root} is not here")

    async def rotate_bootstrap_key(self, *, sure):
        return NewBootstrapAnswer(done=sure, invites=0, away=())


def _bodies():
    """One for each route, so that all handlers are reached."""
    return {
        ("POST", "/v1/ping"): {"name": "b", "count": 2, "interval": 0.2},
        ("POST", "/v1/invites"): {"lifetime": 3600, "tags": ["db"], "routes": ["10.0.0.0/8"]},
        ("POST", "/v1/forget"): {"name": "c"},
        ("POST", "/v1/drain"): {"draining": True},
        ("POST", "/v1/keys/node"): {"sure": True},
    }


_QUERIES = {
    "/v1/wait": {"members": "3", "timeout": "1", "name": "b", "state": "alive"},
    "/v1/events": {"recent": "5"},
    "/v1/why": {"name": "b"},
}


def _tree(method, path):
    return [method, path, _QUERIES.get(path, {}), _bodies().get((method, path), {})]


def _raw(tree):
    """Return the request that a tree [method, path, query, body] stands for, however odd it is."""
    match tree:
        case [str() as method, str() as path, dict() as query, body]:
            pass
        case _:
            raise BadPacket("not a request")
    target_ = path + ("?" if query else "") + "&".join(f"{k}={v}" for k, v in query.items())
    data = json.dumps(body, skipkeys=True, default=repr, check_circular=False).encode()
    head = f"{method} {target_} ".encode(errors="replace") + _HEAD
    return head + b"Content-Length: %d\r\n\r\n" % len(data) + data


def _served(raw):
    """Give bytes to a server as one client does, and return the documents it answers with."""

    async def main():
        controller = _Controller()
        ours, theirs = trio.testing.memory_stream_pair()
        heard = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_Connections(make_routes(controller)).handle, theirs)
            await ours.send_all(raw)
            with trio.move_on_after(_HANG_UP):
                async for data in ours:
                    heard += data
            await ours.aclose()
        return bytes(heard)

    clock = trio.testing.MockClock(autojump_threshold=0)
    return _documents(trio.run(main, clock=clock))


def _documents(heard):
    """Return what the first answer says; one that refuses is a `BadPacket`."""
    if not heard:
        raise BadPacket("no answer")  # from a thread, for which this clock does not wait
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "meshd")]))
    client.send(h11.EndOfMessage())
    client.receive_data(heard)
    client.receive_data(b"")
    answer, body = None, b""
    while not isinstance(event := _next(client), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            answer = event
        elif isinstance(event, h11.Data):
            body += event.data
    documents = [json.loads(line) for line in body.splitlines()]
    if answer.status_code != 200:
        assert answer.status_code < 500 or answer.status_code == 503, documents
        raise BadPacket(documents[-1]["error"]["code"])
    return documents


def _next(client):
    """Return the next event; the last one when the client has hung up in the middle of lines."""
    try:
        return client.next_event()
    except h11.RemoteProtocolError as exc:
        if "without sending complete message body" not in str(exc):
            raise
        return h11.EndOfMessage()


def _trees():
    return [pack(_tree(method, path)) for method, path in make_routes(_Controller())]


# Bytes on the socket, and requests that are HTTP whatever they say.
decoder("control-bytes", _served, lambda: [_raw(unpack_untrusted(tree)) for tree in _trees()])
decoder("control-request", lambda data: _served(_raw(unpack_untrusted(data))), _trees)


# What is on this machine's own disk, which may be damaged

decoder("locked", Strongbox(SEED).unlock_untrusted, lambda: [Strongbox(SEED).lock(b"secret")])


# Configuration


def _loaded(load):
    """Return what is loaded; a complaint must not show the secret, wherever it was put."""
    try:
        return load()
    except ConfigError as exc:
        if SECRET in str(exc):
            raise  # which is found, as any other error would be
        raise BadPacket("configuration refused") from exc


_SECRETS = {option.key for option in config.OPTIONS if option.secret}
_TABLES = [
    {"port": 51820, "seed": ["a.example:1", "[::1]:2"], "secret": SECRET, "mdns": True},
    {"name": "a", "advertise": ["10.0.0.0/8"], "relay": False, "relay_ports": "1-9"},
    {"endpoint": ["192.0.2.1:1"], "ipv4_prefix": "10.9.0.0/16", "address": "10.9.0.1"},
    {"backend": "auto", "interface": "mesh1", "log_level": "debug", "log_format": "json"},
    {"token": SECRET},
    {"state_dir": "/nowhere", "runtime_dir": "/nowhere", "init": True},
]


def _table(data):
    """Return a changed table, in which only what is secret holds the secret."""
    table = unpack_untrusted(data)
    if not isinstance(table, dict):
        raise BadPacket("not a table")
    return {
        key: "elsewhere" if SECRET in repr(value) and key not in _SECRETS else value
        for key, value in table.items()
        if isinstance(key, str) and SECRET not in key
    }


@target("config-file")
def _config_file():
    """Bytes of a file, which is in memory."""
    file = os.memfd_create("meshd.toml")
    os.fchmod(file, 0o600)
    path = Path(f"/proc/self/fd/{file}")
    seeds = [_toml(table) for table in _TABLES if not _SECRETS & table.keys()]

    def decode(data):
        path.write_bytes(data)
        return _loaded(lambda: config.load({}, {"MESHD_CONFIG": str(path)}, "host"))

    return Target(decode, seeds)


def _toml(table):
    """Write a table as TOML, which takes what JSON takes for all these values."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()).encode()


@target("config-values")
def _config_values():
    """Values of all types, as a file would have them."""
    options = {option.key: option for option in config.OPTIONS if option.name != "config"}

    def decode(data):
        table = {key: value for key, value in _table(data).items() if key in options}
        return _loaded(
            lambda: [
                config._typed(options[key], value, "here", toml=True)
                for key, value in table.items()
            ]
        )

    return Target(decode, [pack(table) for table in _TABLES])


@target("config-environment")
def _config_environment():
    """Variables, from whoever starts the daemon."""

    def decode(data):
        environment = {
            f"MESHD_{key.upper()}": value
            for key, value in _table(data).items()
            if isinstance(value, str) and not key.endswith("_file")
        }
        return _loaded(lambda: config.load({}, environment | {"MESHD_CONFIG": "/dev/null"}, "host"))

    words = [{key: _word(value) for key, value in table.items()} for table in _TABLES]
    return Target(decode, [pack(table) for table in words])


def _word(value):
    return " ".join(value) if isinstance(value, list) else str(value).lower()
