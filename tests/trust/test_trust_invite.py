import re
import string
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import BadPacket, UsageError
from meshd.keys import InviteKey
from meshd.trust.grammar import WALL_MAX
from meshd.trust.invite import (
    INVITE_BYTES_MAX,
    TOKEN_TEXT_MAX,
    USES_MAX,
    Invite,
    format_token,
    is_seed,
    open_invite_untrusted,
    parse_token_untrusted,
    sign_invite,
)
from meshd.trust.signed import Statement, sign
from trust.world import (
    BOOTSTRAP_KEY,
    HOUR,
    INVITE_KEY,
    MESH,
    OTHER_MESH_KEY,
    WALL,
    YEAR,
    A,
    B,
    invite_blob,
    token,
)

BASE64URL = string.ascii_letters + string.digits + "-_"

invites = st.builds(
    Invite,
    id=st.just(INVITE_KEY.id),
    issuer=st.just(A.id),
    expires_at=st.integers(0, WALL_MAX),
    uses=st.integers(0, USES_MAX),
    name=st.sampled_from(["", "web", "a" * 63]),
    tags=st.sampled_from([(), ("db",), ("db", "*")]),
    ipv4=st.none() | st.ip_addresses(v=4),
    routes=st.sampled_from([(), (IPv4Network("10.0.0.0/8"),)]),
    admit=st.booleans(),
    relay=st.booleans(),
    lifetime=st.integers(0, WALL_MAX),
)


@given(invites)
def test_an_invite_opens_as_what_was_signed(invite):
    assert open_invite_untrusted(sign_invite(invite, A, MESH), MESH) == invite


def test_an_invite_is_its_issuers_and_its_meshs():
    blob = invite_blob(A)

    with pytest.raises(BadPacket, match="bad signature"):
        open_invite_untrusted(sign(Statement.INVITE, MESH, B, blob[64:]), MESH)
    with pytest.raises(BadPacket, match="bad signature"):
        open_invite_untrusted(blob, OTHER_MESH_KEY.id)


def test_an_invite_has_a_size_limit_and_says_so_when_it_is_made():
    tags = tuple(letter * 32 for letter in "abcdefgh")

    with pytest.raises(UsageError, match=f"{INVITE_BYTES_MAX} are allowed"):
        invite_blob(A, tags=tags)


@given(invites)
def test_a_token_is_read_as_what_was_written(invite):
    written = token(invite=sign_invite(invite, A, MESH))

    parsed = parse_token_untrusted(format_token(written))

    assert parsed == written
    assert parsed.invite_key.seed == INVITE_KEY.seed


def test_space_around_a_token_does_not_matter():
    assert parse_token_untrusted(f"  {format_token(token())}\n") == token()


def test_a_token_with_one_character_changed_is_garbled():
    text = format_token(token())
    start = text.index(".") + 1

    for position in range(start, len(text)):
        for char in ("A", "B", "_", "=", "+", "ä", "", text[position] * 2):
            changed = text[:position] + char + text[position + 1 :]
            if changed == text:
                continue
            with pytest.raises(BadPacket, match="token is garbled"):
                parse_token_untrusted(changed)


def test_no_other_last_character_means_the_same():
    text = format_token(token())

    for char in BASE64URL.replace(text[-1], ""):
        with pytest.raises(BadPacket, match="token is garbled"):
            parse_token_untrusted(text[:-1] + char)


@given(st.integers(0, 400))
def test_a_token_cut_short_is_garbled(length):
    text = format_token(token())
    start = text.index(".") + 1

    with pytest.raises(BadPacket, match="token is garbled"):
        parse_token_untrusted(text[: start + min(length, len(text) - start - 1)])


@pytest.mark.parametrize("version", ["0", "2", "12", "01"])
def test_a_token_of_another_version_is_told_apart(version):
    text = format_token(token()).replace("meshd1.", f"meshd{version}.")

    with pytest.raises(BadPacket, match="unknown version"):
        parse_token_untrusted(text)


@pytest.mark.parametrize("text", ["", "hello", "meshd", "meshd.x", "mesh1.AAAA", "Meshd1.AAAA"])
def test_another_text_is_not_a_token(text):
    with pytest.raises(BadPacket, match="not a token"):
        parse_token_untrusted(text)


def test_a_token_too_long_is_garbled():
    with pytest.raises(BadPacket, match="garbled"):
        parse_token_untrusted("meshd1." + "A" * (TOKEN_TEXT_MAX + 1))


def test_a_token_with_an_invite_of_another_key_or_mesh_is_malformed():
    with pytest.raises(BadPacket, match="token is malformed"):
        parse_token_untrusted(format_token(token(invite_key=InviteKey(b"x" * 32))))
    with pytest.raises(BadPacket, match="token is malformed"):
        parse_token_untrusted(format_token(token(mesh=OTHER_MESH_KEY.id)))


def test_no_secret_is_shown():
    shown = repr(token()) + str(token())

    assert "BootstrapKey(…)" in shown
    for secret in (BOOTSTRAP_KEY, INVITE_KEY.seed):
        assert bytes(secret).hex() not in shown
        assert repr(bytes(secret))[2:-1] not in shown


@pytest.mark.parametrize(
    "seed", ["a:1", "192.0.2.1:51820", "[2001:db8::1]:65535", "seed.example.org:51820", "a_b:1"]
)
def test_a_seed_is_host_and_port(seed):
    assert is_seed(seed)


@pytest.mark.parametrize(
    "seed",
    [
        "",
        "a",
        "a:",
        ":1",
        "a:0",
        "a:65536",
        "2001:db8::1:1",
        "a b:1",
        "ä:1",
        "a:1\n",
        "a" * 128 + ":1",
    ],
)
def test_anything_else_is_no_seed(seed):
    assert not is_seed(seed)


def test_the_token_text_is_pinned():
    assert format_token(token(invite=b"i")) == (
        "meshd1.hgHEIGKmEbRy2JsOX8k8BpufcAtMVS1VvA6HtWAI7xe2sr6-AsQgYmJiYmJiYmJiYmJiYmJiYmJiYmJi"
        "YmJiYmJiYmJiYmIDk68xOTIuMC4yLjE6NTE4MjCzWzIwMDE6ZGI4OjoxXTo1MTgyMLZzZWVkLmV4YW1wbGUub3Jn"
        "OjUxODIwBMQgaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWkFxAFpBsQFZEAAAAqzAsU_"
    )


def test_the_invite_body_is_pinned():
    invite = Invite(
        id=INVITE_KEY.id,
        issuer=A.id,
        expires_at=WALL + HOUR,
        uses=5,
        name="web",
        tags=("db",),
        ipv4=IPv4Address("100.64.0.7"),
        routes=(IPv4Network("10.0.0.0/8"),),
        admit=True,
        relay=True,
        lifetime=YEAR,
    )

    assert sign_invite(invite, A, MESH)[64:].hex() == (
        "8b"
        "01c420e34d3a01b6112e1429ead61668405f4ef4be4f8853abee5079d28ac6c13ffdd0"
        "02c420af06a3e3291714e4f356c19c9b15cd1951ec6e6662aa77be07547f289383341d"
        "03ce6553ff10"
        "0405"
        "05a3776562"
        "0691a26462"
        "07c40464400007"
        "0891c4050a00000008"
        "09c3"
        "0ac3"
        "0bce01e13380"
    )


def test_a_typical_token_can_be_pasted_into_one_line():
    text = format_token(replace(token(), seeds=("192.0.2.1:51820",)))

    assert len(text) < 400
    assert re.fullmatch(r"meshd1\.[A-Za-z0-9_-]+", text)
