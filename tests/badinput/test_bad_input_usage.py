"""What cannot be meant: one line that says so, exit status 2, and an untouched machine."""

import pytest

from badinput.machines import NEEDS_ROOT, SECRET

pytestmark = NEEDS_ROOT


@pytest.fixture
def refused(machine):
    """Run meshd, and hold it to refusing with status 2 and leaving nothing behind."""

    def run(*args, env=None, says=()):
        with machine.unchanged():
            outcome = machine.meshd(*args, env=env)
        return outcome.refuses(2, *says)

    return run


def test_without_a_word_on_how_to_get_into_a_mesh_the_four_ways_are_named(machine):
    with machine.unchanged():
        outcome = machine.meshd()

    assert outcome.status == 2
    assert outcome.said[0].startswith("meshd: this machine is in no mesh yet")
    assert [line.split()[1] for line in outcome.said[1:]] == [
        "--init",
        "--token-file",
        "--secret-file",
        "--ask-approval",
    ]


def test_asking_for_approval_takes_somebody_to_ask_and_no_other_way_in(machine):
    with machine.unchanged():
        nobody = machine.meshd("--ask-approval")
        both = machine.meshd("--ask-approval", "--seed", "192.0.2.1", "--init")

    assert (nobody.status, both.status) == (2, 2)
    assert "add --seed HOST[:PORT]" in nobody.said[0]
    assert "--init: choose one way into a mesh" in both.said[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--port", "0"], "--port = '0': must be a whole number from 1 to 65535"),
        (["--port", "https"], "--port = 'https': must be a whole number"),
        (["--interface", "a/b"], "--interface = 'a/b': must be 1 to 15 of"),
        (["--interface", "sixteen-letters-"], "must be 1 to 15 of"),
        (["--interface", ""], "--interface = ''"),
        (["--interface", "all"], "means something else to the kernel"),
        (["--seed", "a b"], "--seed = 'a b': needs a host name or an IP address"),
        (["--seed", "10.77.0"], "malformed IPv4 address"),
        (["--seed", "[2001:db8::1"], "must be [ADDRESS] or [ADDRESS]:PORT"),
        (["--seed", "host:"], "has a colon and no port behind it"),
        (["--name", "Not A Label"], "'not-a-label' would do"),
        (["--sed", "10.77.0.1"], "unknown option --sed; did you mean --seed?"),
        (["--seed"], "argument --seed: expected one argument"),
        (["mesh0"], "unknown argument mesh0"),
        (["--init", "--token", "meshd1.x"], "--init and --token: either make a mesh or join one"),
        (["--token", "meshd1.x", "--secret-file", "/x"], "give one of them only"),
        (["--address", "10.0.0.1", "--ipv4-prefix", "100.64.0.0/16"], "is not within"),
        (["--config", "/nowhere.toml"], "--config /nowhere.toml: there is no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_flag_that_cannot_be_meant_is_named_with_what_is_allowed(refused, flags, says):
    refused(*flags, says=[says])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("porrt = 51820", "unknown key 'porrt'; did you mean 'port'?"),
        ("config = '/x'", "unknown key 'config'; there are address, "),
        ("port = '51820'", "port = '51820': must be a whole number"),
        ("port = true", "port = true: must be a whole number"),
        ("port = 0", "port = 0: must be a whole number from 1 to 65535"),
        ("mdns = 'yes'", "mdns = 'yes': must be true or false"),
        ("seed = [51820]", "seed = 51820: must be a list of text in quotes"),
        ("token = 5", "token: must be text in quotes"),
        ("secret = 'short'", "secret: has 5 characters"),
        ("port: 51820", "is not TOML"),
        (b"\xff\xfe", "is not TOML: it is not even UTF-8 text"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_configuration_file_is_named_with_the_key(machine, refused, content, says):
    path = machine.write("/etc/meshd/meshd.toml", content)

    refused("--init", says=[path, says])


def test_a_directory_is_no_configuration_file(refused):
    refused("--config", "/etc", says=["/etc: cannot be read: Is a directory"])


def test_a_file_without_an_end_is_not_read_to_it(refused):
    for flag in ("--config", "--token-file", "--secret-file"):
        refused(flag, "/dev/zero", says=["/dev/zero: is longer than 1048576 bytes"])


def test_a_wrong_environment_variable_is_named(refused):
    refused(env={"MESHD_PORT": "many"}, says=["MESHD_PORT = 'many': must be a whole number"])


def test_a_variable_that_means_nothing_is_remarked_on_and_does_no_harm(machine):
    outcome = machine.meshd("--check-config", env={"MESHD_PROT": "51820"})

    assert outcome.status == 0
    assert "MESHD_PROT means nothing to meshd; did you mean 'MESHD_PORT'?" in outcome.output


# Secrets and tokens


@pytest.mark.parametrize("way", ["secret", "token"])
def test_a_file_that_cannot_be_used_is_named_with_the_reason(machine, refused, way):
    path = f"/etc/meshd/{way}"
    flag = f"--{way}-file"
    refused(flag, path, says=[f"{flag} {path}: cannot be read: No such file or directory"])
    refused(flag, "/etc/meshd", says=["cannot be read: Is a directory"])
    machine.write(path, "\n")
    refused(flag, path, says=[f"{flag} {path}: is empty"])
    machine.write(path, b"x" * 2**20 + b"y")
    refused(flag, path, says=["is longer than 1048576 bytes"])


def test_a_secret_that_can_be_guessed_is_refused(machine, refused):
    machine.write_secret("swordfish\n")

    refused(
        "--secret-file",
        "/etc/meshd/secret",
        says=["has 9 characters and may be guessed", "use 12 or more"],
    )


def test_a_file_that_is_far_too_long_for_a_secret_is_refused(machine, refused):
    machine.write_secret(SECRET * 100)

    refused("--secret-file", "/etc/meshd/secret", says=["is it the right file?"])


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("meshd1.hgHEIA", "token is garbled: copy it again, whole"),
        ("meshd1." + "A" * 100_000, "token is garbled: copy it again, whole"),
        ("meshd2.hgHEIA", "token is of an unknown version: update meshd"),
        ("ssh-ed25519 AAAA", "not a token: it must begin with 'meshd1.'"),
        (b"\x89PNG\r\n\x1a\n", "holds no token: those are plain text"),
    ],
    ids=["cut short", "huge", "of tomorrow", "something else", "a picture"],
)
def test_what_is_no_token_is_told_apart_from_one_that_is_not_accepted(
    machine, refused, token, says
):
    machine.write("/etc/meshd/token", token)

    refused("--token-file", "/etc/meshd/token", says=["/etc/meshd/token", says])


def test_a_token_on_the_command_line_is_refused_like_one_in_a_file(refused):
    refused("--token", "meshd1." + "A" * 100_000, says=["token is garbled"])
