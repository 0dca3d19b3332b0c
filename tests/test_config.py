from __future__ import annotations

import os
import sys
from io import BytesIO, TextIOWrapper
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd import config, values
from meshd.config import OPTIONS, Config, load
from meshd.errors import ConfigError
from meshd.values import HostPort, PortRange

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "correct horse battery"

# For every option: its text on a command line, its value in a TOML file, and what comes of them.
EXAMPLES: dict[str, tuple[object, str, object]] = {
    "seed": (
        ["a", "b:7", "tls://c", "tcp://[::1]"],
        '["a", "b:7", "tls://c", "tcp://[::1]"]',
        (
            HostPort("a", 51820),
            HostPort("b", 7),
            HostPort("c", 443, "tls"),
            HostPort("::1", 51820, "tcp"),
        ),
    ),
    "token": ("meshd1.x", '"meshd1.x"', "meshd1.x"),
    "secret": (SECRET, f'"{SECRET}"', SECRET.encode()),
    "init": (True, "true", True),
    "ask-approval": (True, "true", True),
    "name": ("web-1", '"web-1"', "web-1"),
    "interface": ("wg.mesh_1", '"wg.mesh_1"', "wg.mesh_1"),
    "port": ("1234", "1234", 1234),
    "address": ("100.64.3.4", '"100.64.3.4"', ip_address("100.64.3.4")),
    "ipv4-prefix": ("10.7.0.0/16", '"10.7.0.0/16"', ip_network("10.7.0.0/16")),
    "endpoint": (["[2001:db8::1]:9"], '["[2001:db8::1]:9"]', (HostPort("2001:db8::1", 9),)),
    "advertise": (["10.0.0.0/8"], '"10.0.0.0/8"', (ip_network("10.0.0.0/8"),)),
    "relay": (False, "false", False),
    "backend": ("userspace", '"userspace"', "userspace"),
    "relay-ports": ("6000-6100", '"6000-6100"', PortRange(6000, 6100)),
    "relay-tcp": ("443", "443", 443),
    "relay-tls": ("8443", "8443", 8443),
    "rotate-keys-after": ("30d", '"30d"', 30 * 86400.0),
    "psk": (False, "false", False),
    "port-mapping": (False, "false", False),
    "mdns": (False, "false", False),
    "state-dir": ("/s", '"/s"', Path("/s")),
    "runtime-dir": ("/r", '"/r"', Path("/r")),
    "log-level": ("debug", '"debug"', "debug"),
    "log-format": ("json", '"json"', "json"),
}
READ_FROM_FILES = ("token-file", "secret-file", "config")


@pytest.fixture(autouse=True)
def _no_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "absent.toml")


def toml(tmp_path: Path, text: str) -> dict[str, str]:
    """Return flags that name a file with this text."""
    path = tmp_path / "meshd.toml"
    path.write_text(text)
    path.chmod(0o600)
    return {"config": str(path)}


def made(
    flags: dict[str, object] | None = None, environment: dict[str, str] | None = None
) -> Config:
    return load(flags or {}, environment or {}, "Host.example.org")


def option(name: str) -> config.Option:
    return next(option for option in OPTIONS if option.name == name)


def test_every_option_has_an_example() -> None:
    assert {option.name for option in OPTIONS} == {*EXAMPLES, *READ_FROM_FILES}


def test_every_option_is_a_field_and_every_field_a_default() -> None:
    defaults = Config(name="x")
    for option in OPTIONS:
        assert hasattr(defaults, option.field)


def test_without_anything_the_defaults_hold() -> None:
    assert made() == Config(name="host")
    assert made().given == frozenset()
    assert str(made().state_path) == "/var/lib/meshd/mesh0"
    assert str(made().socket_path) == "/run/meshd/mesh0.sock"


@pytest.mark.parametrize("name", EXAMPLES)
def test_flag_variable_and_key_mean_the_same(tmp_path: Path, name: str) -> None:
    flag, written, wanted = EXAMPLES[name]
    it = option(name)
    variable = ",".join(flag) if isinstance(flag, list) else str(flag)
    loaded = [
        made(environment={it.variable: variable}),
        made(toml(tmp_path, f"{it.key} = {written}")),
    ]
    if it.flag:
        loaded.append(made({it.field: flag}))
    for one in loaded:
        assert getattr(one, it.field) == wanted
        assert it.field in one.given


def test_the_first_place_wins(tmp_path: Path) -> None:
    flags = toml(tmp_path, 'port = 3\nname = "c"\nseed = ["x"]')
    assert made({**flags, "port": "1"}, {"MESHD_PORT": "2"}).port == 1
    both = made(flags, {"MESHD_PORT": "2", "MESHD_SEED": "y z:1", "MESHD_NAME": ""})
    assert (both.port, both.name) == (2, "c")
    assert both.seeds == (HostPort("y", 51820), HostPort("z", 1))


# Secrets and tokens


def test_secrets_come_from_files_without_their_newline(tmp_path: Path) -> None:
    for name, content in (("secret", SECRET.encode() + b"\r\n"), ("token", b"meshd1.x\n")):
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(0o600)
    loaded = made({"secret_file": str(tmp_path / "secret")})
    assert (loaded.secret, loaded.warnings) == (SECRET.encode(), ())
    assert made({"token_file": str(tmp_path / "token")}).token == "meshd1.x"


def test_secrets_come_from_systemd_s_credentials(tmp_path: Path) -> None:
    (tmp_path / "meshd.secret").write_text(SECRET + "\n")
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert made({}, environment).secret == SECRET.encode()
    assert made(toml(tmp_path, 'token = "x"'), environment).token is None
    assert made({}, {**environment, "MESHD_TOKEN": "meshd1.x"}).secret is None
    (tmp_path / "meshd.secret").rename(tmp_path / "meshd.token")
    assert made({}, environment).token == SECRET


def test_init_may_go_with_a_secret_but_not_with_a_token() -> None:
    assert made({"init": True}, {"MESHD_SECRET": SECRET}).secret == SECRET.encode()
    with pytest.raises(ConfigError, match="--init and MESHD_TOKEN: either make a mesh or join"):
        made({"init": True}, {"MESHD_TOKEN": "x"})


def test_two_ways_in_at_one_place_are_refused() -> None:
    with pytest.raises(ConfigError, match="MESHD_TOKEN and MESHD_SECRET: give one of them only"):
        made({}, {"MESHD_TOKEN": "x", "MESHD_SECRET": SECRET})


def test_a_secret_that_can_be_guessed_is_refused_without_repeating_it(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("hunter2\n")
    with pytest.raises(ConfigError) as error:
        made({"secret_file": str(path)})
    assert f"--secret-file {path}: has 7 characters and may be guessed" in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("name", ["secret", "token"])
def test_secrets_that_all_can_read_are_warned_about(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(SECRET)
    path.chmod(0o644)
    (warning,) = made({f"{name}_file": str(path)}).warnings
    assert warning == f"--{name}-file {path}: all users of this machine can read it; chmod 600 it"
    flags = toml(tmp_path, f'{name} = "{SECRET}"')
    Path(flags["config"]).chmod(0o644)
    (warning,) = made(flags).warnings
    assert warning.endswith(f"holds a {name} and all users can read it; chmod 600 it")


def test_a_token_on_the_command_line_is_warned_about() -> None:
    (warning,) = made({"token": "meshd1.x"}).warnings
    assert "use --token-file" in warning


def test_secrets_are_in_no_repr() -> None:
    loaded = made({}, {"MESHD_SECRET": SECRET})
    assert SECRET not in repr(loaded)
    assert "meshd1.x" not in repr(made({"token": "meshd1.x"}))


# What is wrong is named


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "unknown key 'prot'; did you mean 'port'?"),
        ("[node]\nport = 1", "unknown key 'node'"),
        ('config = "x"', "unknown key 'config'"),
        ('port = "1"', "port = '1': must be a whole number"),
        ("port = true", "port = true: must be a whole number"),
        ("state_dir = ''", "state_dir = '': must not be empty"),
        ("port = 70000", "port = 70000: must be a whole number from 1 to 65535"),
        ("port = 0", "port = 0: must be a whole number from 1 to 65535"),
        ("relay = 1", "relay = 1: must be true or false"),
        ('relay = "yes"', "relay = 'yes': must be true or false"),
        ("name = 5", "name = 5: must be text in quotes"),
        ('name = "Web_1"', "with no - at an end; 'web-1' would do"),
        ('interface = "much-too-long-a-name"', "must be 1 to 15"),
        ('interface = "a/b"', "must be 1 to 15"),
        ('interface = "all"', "means something else to the kernel"),
        ("seed = [1]", "seed = 1: must be a list of text in quotes"),
        ('seed = ["a:"]', "seed = 'a:': has a colon and no port behind it"),
        ('seed = ["10.0.0.256"]', "has a malformed IPv4 address"),
        ('seed = ["fd00::g"]', "has a malformed IPv6 address"),
        ('seed = ["-x"]', "needs a host name or an IP address"),
        ('seed = ["[fd00::1"]', "must be [ADDRESS] or [ADDRESS]:PORT"),
        ('endpoint = "a.example"', "must be HOST:PORT"),
        ('endpoint = ["a:1", "b:1", "c:1", "d:1", "e:1"]', "5 values; at most 4 are allowed"),
        ('address = "fd00::1"', "must be an IPv4 address A.B.C.D"),
        ('ipv4_prefix = "10.0.0.0/30"', "must be an IPv4 network of /8 to /28"),
        ('ipv4_prefix = "fd00::/16"', "must be an IPv4 network of /8 to /28"),
        ('advertise = "10.0.0.1/8"', "has bits set behind its prefix; did you mean 10.0.0.0/8?"),
        ('advertise = "here"', "must be a network in CIDR notation"),
        ('relay_ports = "5-4"', "must be FIRST-LAST, 2 ports or more up to 65535"),
        ('relay_ports = "51000-52000"', "holds the port 51820 itself"),
        ('backend = "kernal"', "backend = 'kernal': must be one of auto, kernel, userspace"),
        ('address = "1.2.3.4"\nipv4_prefix = "10.0.0.0/8"', "is not within"),
        ("port = ", "is not TOML: "),
        ("token = 5", "token: must be text in quotes"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    flags = toml(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        made(flags)
    assert str(error.value).startswith(flags["config"])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_wrong_in_flags_and_variables_names_them() -> None:
    with pytest.raises(ConfigError, match=r"^--port = 'x': must be a whole number"):
        made({"port": "x"})
    with pytest.raises(ConfigError, match=r"^MESHD_RELAY = 'maybe': must be true or false"):
        made({}, {"MESHD_RELAY": "maybe"})


def test_a_variable_that_means_nothing_is_warned_about() -> None:
    (warning,) = made({}, {"MESHD_PROT": "1"}).warnings
    assert warning == (
        "environment variable MESHD_PROT means nothing to meshd; did you mean 'MESHD_PORT'?"
    )


@pytest.mark.parametrize("name", ["config", "token_file", "secret_file"])
@pytest.mark.parametrize("how", ["absent", "directory", "forbidden"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, how: str) -> None:
    path = tmp_path / "file"
    if how == "directory":
        path.mkdir()
    elif how == "forbidden":
        # Even root may not read this one.
        path = Path("/proc/self/mem")
    with pytest.raises(ConfigError) as error:
        made({name: str(path)})
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe token"])
def test_a_token_file_without_a_token_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"--token-file {path}: (is empty|holds no token)"):
        made({"token_file": str(path)})


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "meshd.toml"
    path.write_bytes(os.urandom(64) + b"\xff")
    with pytest.raises(ConfigError, match="is not TOML: it is not even UTF-8 text"):
        made({"config": str(path)})


def test_reloading_reads_the_file_again_and_keeps_flags(tmp_path: Path) -> None:
    flags = {**toml(tmp_path, "mdns = false\nport = 1"), "port": "2"}
    loaded = made(flags)
    toml(tmp_path, "mdns = true\nport = 3")
    again = loaded.reload()
    assert (loaded.mdns, again.mdns, again.port) == (False, True, 2)
    toml(tmp_path, "nonsense")
    with pytest.raises(ConfigError):
        loaded.reload()


# Values


def refusal(read: Callable[[str], object], text: str) -> type[Exception] | None:
    try:
        read(text)
    except ValueError as exc:
        return type(exc) if str(exc) else AssertionError
    return None


@given(st.text(max_size=80))
@settings(deadline=None)
def test_any_text_gives_a_value_or_says_what_is_allowed(text: str) -> None:
    readers = [it.read for it in OPTIONS if it.name not in READ_FROM_FILES]
    for read in (*readers, values.duration):
        # A subclass would be Python's own words, such as a decoding error's.
        assert refusal(read, text) in {None, ValueError}


@given(st.integers(1, 65535), st.ip_addresses())
def test_an_address_with_its_port_comes_back(port: int, address: object) -> None:
    given = HostPort(str(address), port)
    assert values.host_port(str(given)) == values.host_maybe_port(str(given)) == given


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1h", 3600), ("7d", 604800), ("1.5m", 90), ("250ms", 0.25), ("3", 3)],
)
def test_spans_of_time_are_read(text: str, seconds: float) -> None:
    assert values.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1s", "1 h", "1y", "1h30m", "٣s"])
def test_what_is_no_span_of_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a span of time"):
        values.duration(text)


def test_a_token_may_come_from_standard_input_and_is_read_once(monkeypatch) -> None:
    for flags in ({"token": "-"}, {"token_file": "-"}):
        config._standard_input.cache_clear()
        stdin = TextIOWrapper(BytesIO(b"meshd1.token\n"))
        monkeypatch.setattr(sys, "stdin", stdin)

        given = made(flags)

        assert given.token == "meshd1.token"
        assert given.warnings == ()
        assert given.reload().token == "meshd1.token"
    config._standard_input.cache_clear()


def test_a_token_on_the_command_line_is_warned_of() -> None:
    (warning,) = made({"token": "meshd1.token"}).warnings
    assert "--token-file" in warning
    assert "meshd1.token" not in warning


@pytest.mark.parametrize("other", [{"init": True}, {"token": "x"}, {"token_file": "-"}])
def test_approval_is_asked_for_instead_of_any_other_way_in(other, monkeypatch) -> None:
    config._standard_input.cache_clear()
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"meshd1.token\n")))
    with pytest.raises(ConfigError, match=r"--ask-approval and .*: choose one way into a mesh"):
        made({"ask_approval": True, **other})
    config._standard_input.cache_clear()
