"""Configuration: one table of options, and the five places a value may come from.

A value is taken from the first of these that has it:

| place                      | a port is written                | a secret                         |
| -------------------------- | -------------------------------- | -------------------------------- |
| command line               | `--port 51820`                   | `--secret-file FILE`             |
| environment                | `MESHD_PORT=51820`               | `MESHD_SECRET`                   |
| systemd's credentials      |                                  | file `meshd.secret`              |
| file, `--config`           | `port = 51820`                   | `secret = "…"`                   |
| default                    | 51820                            |                                  |

Flag, key and variable of an option follow from its name: `relay-ports` is `--relay-ports`,
`relay_ports` and `MESHD_RELAY_PORTS`.  A list replaces the list of a later place, it is not added
to it.  In variables its items are parted by commas or spaces.  An empty variable counts as unset.

`token`, `token-file`, `secret` and `secret-file` are four ways to say one thing: the first place
that has any of them decides, and there it must be one only.
"""

from __future__ import annotations

import functools
import os
import socket
import stat
import sys
import tomllib
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from meshd import values
from meshd.errors import ConfigError
from meshd.trust.grammar import clean_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from meshd.codec import IPNetwork
    from meshd.values import HostPort, PortRange

DEFAULT_FILE = Path("/etc/meshd/meshd.toml")
DEFAULT_IPV4_PREFIX = IPv4Network("100.64.0.0/10")  # shared address space, RFC 6598
DEFAULT_ROTATE_KEYS_AFTER = 90 * 86400.0
FILE_BYTES_MAX = 1024 * 1024
ADVERTISED_MAX = 16  # what a record holds
VARIABLE_PREFIX = "MESHD_"


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that can be configured."""

    name: str
    field: str  # of Config
    read: Callable[[str], object]
    help: str
    metavar: str | None = None
    toml: type = str  # what a TOML file must have; for `many`, a list of it
    many: bool = False
    secret: bool = False  # never shown
    flag: bool = True  # may stand on the command line
    count_max: int = 64

    @property
    def key(self) -> str:
        """Its name in a TOML file."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return VARIABLE_PREFIX + self.key.upper()


OPTIONS: tuple[Option, ...] = (
    Option(
        "seed",
        "seeds",
        values.seed,
        "a member to join through; with tcp:// or tls:// in front where UDP is blocked",
        "HOST[:PORT]",
        many=True,
    ),
    Option(
        "token",
        "token",
        values.text,
        "invite token, or - to read it from standard input; prefer that, or --token-file",
        "TOKEN",
        secret=True,
    ),
    Option("token-file", "token_file", values.path, "file with an invite token", "FILE"),
    Option(
        "secret",
        "secret",
        values.passphrase,
        "passphrase shared by the whole mesh",
        secret=True,
        flag=False,
    ),
    Option(
        "secret-file",
        "secret_file",
        values.path,
        "file with the passphrase shared by the whole mesh",
        "FILE",
    ),
    Option("init", "init", values.flag, "make a new mesh, if this machine is in none", toml=bool),
    Option(
        "ask-approval",
        "ask_approval",
        values.flag,
        "show a code and wait until it is approved on a member, if this machine is in no mesh",
        toml=bool,
    ),
    Option("name", "name", values.label, "this node's name (from the host name)", "NAME"),
    Option("interface", "interface", values.interface, "WireGuard interface (mesh0)", "NAME"),
    Option("port", "port", values.port, "UDP port of the underlay (51820)", "PORT", toml=int),
    Option(
        "address",
        "address",
        values.ipv4_address,
        "IPv4 address in the mesh (chosen by itself)",
        "A.B.C.D",
    ),
    Option(
        "ipv4-prefix",
        "ipv4_prefix",
        values.ipv4_prefix,
        "network of a new mesh's IPv4 addresses (100.64.0.0/10)",
        "CIDR",
    ),
    Option(
        "endpoint",
        "endpoints",
        values.host_port,
        "address others reach this node at, such as a forwarded port",
        "HOST:PORT",
        many=True,
        count_max=4,
    ),
    Option(
        "advertise",
        "advertise",
        values.network,
        "network behind this node that it offers to the mesh; no effect yet",
        "CIDR",
        many=True,
        count_max=ADVERTISED_MAX,
    ),
    Option(
        "relay",
        "relay",
        values.flag,
        "relay for members that cannot reach each other",
        toml=bool,
    ),
    Option(
        "backend",
        "backend",
        values.choice("auto", "kernel", "userspace"),
        "WireGuard implementation (auto)",
        "KIND",
    ),
    Option(
        "relay-ports",
        "relay_ports",
        values.port_range,
        "UDP ports for relaying (51900-53947)",
        "FIRST-LAST",
    ),
    Option(
        "relay-tcp",
        "relay_tcp",
        values.port_or_none,
        "TCP port for members whose UDP is blocked; 0 is none (with --relay, the number of --port)",
        "PORT",
        toml=int,
    ),
    Option(
        "relay-tls",
        "relay_tls",
        values.port_or_none,
        "the same with TLS, such as 443 (none)",
        "PORT",
        toml=int,
    ),
    Option(
        "psk",
        "psk",
        values.flag,
        "share keys with members that no quantum computer finds out (yes)",
        toml=bool,
    ),
    Option(
        "port-mapping",
        "port_mapping",
        values.flag,
        "ask the router for a port that leads to this node's (yes)",
        toml=bool,
    ),
    Option("mdns", "mdns", values.flag, "find members on the LAN; no effect yet", toml=bool),
    Option(
        "rotate-keys-after",
        "rotate_keys_after",
        values.duration_or_never,
        "age at which the WireGuard key is replaced; 0 is never (90d)",
        "SPAN",
    ),
    Option("config", "config", values.path, f"configuration file ({DEFAULT_FILE})", "FILE"),
    Option(
        "state-dir",
        "state_dir",
        values.path,
        "where keys and state are kept (/var/lib/meshd)",
        "DIR",
    ),
    Option(
        "runtime-dir", "runtime_dir", values.path, "where the control socket is (/run/meshd)", "DIR"
    ),
    Option(
        "log-level",
        "log_level",
        values.choice("debug", "info", "warning", "error"),
        "least level that is logged (info)",
        "LEVEL",
    ),
    Option(
        "log-format",
        "log_format",
        values.choice("text", "json"),
        "text or json (text on a terminal)",
        "FORMAT",
    ),
)

_STANDARD_INPUT = "-"  # in the place of a file, or of a token
_ADMISSION = ("token", "token-file", "secret", "secret-file")
_CREDENTIALS = ("token", "secret")
_BY_KEY = {option.key: option for option in OPTIONS}
_BY_VARIABLE = {option.variable: option for option in OPTIONS}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a configuration is made from, so that it can be made again.

    `flags` maps a field of Config to its text (a list of texts, a bool) from the command line.
    """

    flags: Mapping[str, object]
    environment: Mapping[str, str]
    hostname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the operator wants.  Its `repr` shows no secret."""

    name: str
    seeds: tuple[HostPort, ...] = ()
    token: str | None = field(default=None, repr=False)  # read from token_file, if that is given
    token_file: Path | None = None
    secret: bytes | None = field(default=None, repr=False)  # without its trailing newline
    secret_file: Path | None = None
    init: bool = False
    ask_approval: bool = False
    interface: str = "mesh0"
    port: int = values.DEFAULT_PORT
    address: IPv4Address | None = None
    ipv4_prefix: IPv4Network = DEFAULT_IPV4_PREFIX
    endpoints: tuple[HostPort, ...] = ()
    advertise: tuple[IPNetwork, ...] = ()
    relay: bool | None = None  # None: if others can reach it
    backend: str = "auto"
    relay_ports: PortRange = values.DEFAULT_RELAY_PORTS
    relay_tcp: int | None = None  # None: the number of `port`, if it relays; 0 is none
    relay_tls: int = 0
    psk: bool = True
    port_mapping: bool = True
    mdns: bool = True
    rotate_keys_after: float = DEFAULT_ROTATE_KEYS_AFTER  # seconds; 0 is never
    config: Path = DEFAULT_FILE
    state_dir: Path = Path("/var/lib/meshd")
    runtime_dir: Path = Path("/run/meshd")
    log_level: str = "info"
    log_format: str | None = None  # None: text on a terminal, JSON elsewhere
    given: frozenset[str] = frozenset()  # fields that are not defaults
    warnings: tuple[str, ...] = ()
    inputs: Inputs = field(
        default=Inputs(flags={}, environment={}, hostname=""), repr=False, compare=False
    )

    @property
    def state_path(self) -> Path:
        """The directory that is this node's alone."""
        return self.state_dir / self.interface

    @property
    def socket_path(self) -> Path:
        """The control socket."""
        return self.runtime_dir / f"{self.interface}.sock"

    def reload(self) -> Config:
        """Read files and credentials again.  Raise ConfigError; this configuration still holds."""
        return load(self.inputs.flags, self.inputs.environment, self.inputs.hostname)


@dataclass(frozen=True, slots=True)
class _Value:
    value: object
    where: str  # such as `--port`, `MESHD_PORT`, `/etc/meshd/meshd.toml: port`


_Layer: TypeAlias = "dict[str, _Value]"  # by option name


def load(
    flags: Mapping[str, object],
    environment: Mapping[str, str] = os.environ,
    hostname: str | None = None,
) -> Config:
    """Return the configuration.  Raise ConfigError: it names place, value and what is allowed."""
    if hostname is None:
        hostname = socket.gethostname()
    inputs = Inputs(dict(flags), dict(environment), hostname)
    warnings: list[str] = []
    upper = [_from_flags(inputs.flags), _from_environment(inputs.environment, warnings)]
    path = next((layer["config"] for layer in upper if "config" in layer), None)
    layers = [
        *upper,
        _from_credentials(inputs.environment),
        _from_file(Path(str(path.value)) if path else DEFAULT_FILE, path, warnings),
    ]
    chosen = _choose(layers)
    if "token" in layers[0] and layers[0]["token"].value != _STANDARD_INPUT:
        warnings.append(
            "--token has shown the token to all users of this machine for a moment; use "
            "--token-file, or `--token -` and standard input"
        )
    _read_admission(chosen, warnings)
    _check_together(chosen)
    fields = {_BY_NAME[name].field: value.value for name, value in chosen.items()}
    config = Config(name=clean_name(hostname))
    return replace(
        config,
        **fields,  # type: ignore[arg-type]  # the table pairs each field with a reader of its type
        given=frozenset(fields),
        warnings=tuple(warnings),
        inputs=inputs,
    )


_BY_NAME = {option.name: option for option in OPTIONS}


def _from_flags(flags: Mapping[str, object]) -> _Layer:
    layer: _Layer = {}
    for option in OPTIONS:
        raw = flags.get(option.field)
        if raw is not None:
            where = f"--{option.name}"
            layer[option.name] = _Value(_typed(option, raw, where), where)
    return layer


def _from_environment(environment: Mapping[str, str], warnings: list[str]) -> _Layer:
    layer: _Layer = {}
    for variable, raw in sorted(environment.items()):
        if not variable.startswith(VARIABLE_PREFIX) or not raw:
            continue
        option = _BY_VARIABLE.get(variable)
        if option is None:
            hint = _did_you_mean(variable, _BY_VARIABLE)
            warnings.append(f"environment variable {variable} means nothing to meshd{hint}")
            continue
        given = raw.replace(",", " ").split() if option.many else raw
        layer[option.name] = _Value(_typed(option, given, variable), variable)
    return layer


def _from_credentials(environment: Mapping[str, str]) -> _Layer:
    directory = environment.get("CREDENTIALS_DIRECTORY")
    layer: _Layer = {}
    for name in _CREDENTIALS if directory else ():
        path = Path(str(directory)) / f"meshd.{name}"
        if path.exists():
            where = f"credential {path}"
            raw = _read_line(path, where)
            value = raw if name == "secret" else _token_text(raw, where)
            layer[name] = _Value(value, where)
    return layer


def _from_file(path: Path, asked: _Value | None, warnings: list[str]) -> _Layer:
    try:
        raw = _read_bounded(path, str(path))
    except FileNotFoundError:
        if asked is None:
            return {}
        raise ConfigError(f"{asked.where} {path}: there is no such file") from None
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    try:
        table = tomllib.loads(raw.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not TOML: it is not even UTF-8 text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path}: is not TOML: {exc}") from exc
    layer: _Layer = {}
    for key, value in table.items():
        option = _BY_KEY.get(key)
        if option is None or option.name == "config":
            hint = _did_you_mean(key, _BY_KEY.keys() - {"config"})
            raise ConfigError(f"{path}: unknown key {key!r}{hint}")
        where = f"{path}: {key}"
        layer[option.name] = _Value(_typed(option, value, where, toml=True), where)
        if option.secret and _readable_by_all(path):
            warnings.append(f"{path}: holds a {key} and all users can read it; chmod 600 it")
    return layer


def _typed(option: Option, raw: object, where: str, *, toml: bool = False) -> object:
    """Turn a raw value into what Config holds."""
    if not option.many:
        return _typed_one(option, raw, where, toml=toml)
    items = raw if isinstance(raw, list) else [raw]
    if len(items) > option.count_max:
        raise ConfigError(f"{where}: {len(items)} values; at most {option.count_max} are allowed")
    read = [_typed_one(option, item, where, toml=toml) for item in items]
    return tuple(dict.fromkeys(read))


def _typed_one(option: Option, raw: object, where: str, *, toml: bool) -> object:
    if isinstance(raw, bool) and option.toml is bool:
        return raw
    wanted = option.toml if toml else str
    # A bool is an int in Python, and TOML has both.
    if not isinstance(raw, wanted) or isinstance(raw, bool):
        words = {int: "a whole number", bool: "true or false", str: "text in quotes"}[option.toml]
        kind = f"a list of {words}" if option.many else words
        raise ConfigError(f"{where}{_shown(option, raw)}: must be {kind}")
    try:
        return option.read(str(raw))
    except ValueError as exc:
        raise ConfigError(f"{where}{_shown(option, raw)}: {exc}") from None


def _shown(option: Option, raw: object) -> str:
    if option.secret:
        return ""
    return f" = {str(raw).lower() if isinstance(raw, bool) else repr(raw)}"  # as TOML has it


def _choose(layers: Iterable[_Layer]) -> _Layer:
    """Return each option from the first place that has it."""
    chosen: _Layer = {}
    for layer in layers:
        ways = [layer[name].where for name in _ADMISSION if name in layer]
        if len(ways) > 1:
            raise ConfigError(f"{' and '.join(ways)}: give one of them only")
        decided = any(name in chosen for name in _ADMISSION)
        for name, value in layer.items():
            if name not in chosen and not (decided and name in _ADMISSION):
                chosen[name] = value
    return chosen


def _read_admission(chosen: _Layer, warnings: list[str]) -> None:
    """Put the contents of a token or secret file beside its path, and check the secret."""
    token = chosen.get("token")
    if token is not None and token.value == _STANDARD_INPUT:
        chosen["token"] = _Value(_token_text(_standard_input(), "standard input"), token.where)
    for name in ("token", "secret"):
        named = chosen.get(f"{name}-file")
        if named is None:
            continue
        path = Path(str(named.value))
        where = f"{named.where} {path}"
        raw = _read_line(path, where)
        if _readable_by_all(path):
            warnings.append(f"{where}: all users of this machine can read it; chmod 600 it")
        value = raw if name == "secret" else _token_text(raw, where)
        chosen[name] = _Value(value, where)
    secret = chosen.get("secret")
    if secret is not None:
        _check_strength(secret)


def _check_strength(secret: _Value) -> None:
    from meshd.trust.secret import SECRET_LENGTH_MIN  # brings cryptography with it

    assert isinstance(secret.value, bytes)
    if len(secret.value) < SECRET_LENGTH_MIN:
        raise ConfigError(
            f"{secret.where}: has {len(secret.value)} characters and may be guessed by anyone who "
            f"records traffic; use {SECRET_LENGTH_MIN} or more, such as from "
            "`head -c 24 /dev/urandom | base64`"
        )


@functools.cache  # what has been read there cannot be read again, and `reload` wants it
def _standard_input() -> bytes:
    return _line(sys.stdin.buffer.read(FILE_BYTES_MAX), "standard input")


def _read_line(path: Path, where: str) -> bytes:
    if str(path) == _STANDARD_INPUT:
        return _standard_input()
    try:
        raw = _read_bounded(path, where)
    except OSError as exc:
        raise ConfigError(f"{where}: cannot be read: {exc.strerror}") from exc
    return _line(raw, where)


def _line(raw: bytes, where: str) -> bytes:
    line = raw.rstrip(b"\r\n")
    if not line:
        raise ConfigError(f"{where}: is empty")
    return line


def _read_bounded(path: Path, where: str) -> bytes:
    """Return a file's content.  Raise OSError, or ConfigError if it has no end."""
    with path.open("rb") as file:
        raw = file.read(FILE_BYTES_MAX + 1)
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{where}: is longer than {FILE_BYTES_MAX} bytes")
    return raw


def _token_text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{where}: holds no token: those are plain text") from None


def _readable_by_all(path: Path) -> bool:
    if str(path) == _STANDARD_INPUT:
        return False
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)


def _check_together(chosen: _Layer) -> None:
    """Refuse values that are fine by themselves and contradict each other."""
    init, token = chosen.get("init"), chosen.get("token")
    if init is not None and init.value and token is not None:
        raise ConfigError(f"{init.where} and {token.where}: either make a mesh or join one")
    ask = chosen.get("ask-approval")
    for way in (init, token, chosen.get("secret")):
        if ask is not None and ask.value and way is not None and way.value:
            raise ConfigError(f"{ask.where} and {way.where}: choose one way into a mesh")
    address, prefix = chosen.get("address"), chosen.get("ipv4-prefix")
    if (
        address is not None
        and prefix is not None
        and isinstance(address.value, IPv4Address)
        and isinstance(prefix.value, IPv4Network)
        and address.value not in prefix.value
    ):
        raise ConfigError(
            f"{address.where} = {address.value}: is not within {prefix.where} = {prefix.value}"
        )
    port, relay_ports = chosen.get("port"), chosen.get("relay-ports")
    used = port.value if port else values.DEFAULT_PORT
    if relay_ports is not None and isinstance(relay_ports.value, values.PortRange):
        first, last = relay_ports.value
        if isinstance(used, int) and first <= used <= last:
            raise ConfigError(f"{relay_ports.where} = {first}-{last}: holds the port {used} itself")


def _did_you_mean(word: str, words: Iterable[str]) -> str:
    known = sorted(words)
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
