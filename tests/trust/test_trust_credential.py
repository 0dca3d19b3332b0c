from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meshd.codec import pack
from meshd.errors import BadPacket
from meshd.trust.credential import (
    CHAIN_BYTES_MAX,
    CHAIN_LENGTH_MAX,
    CREDENTIAL_BYTES_MAX,
    Credential,
    CredentialCache,
    covered,
    founding_credential,
    issue,
    verify_chain_untrusted,
)
from meshd.trust.grammar import CLOCK_SKEW_MAX
from meshd.trust.signed import Statement, sign
from trust.world import (
    HOUR,
    INVITE_KEY,
    MESH,
    MESH_KEY,
    OTHER_MESH_KEY,
    WALL,
    YEAR,
    A,
    B,
    C,
    D,
    E,
    cache,
    chain_to,
    founding_chain,
)

NODES = (A, B, C, D)
TAGS = ("db", "web", "ci")
ROUTES = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("10.1.0.0/16"),
    IPv4Network("10.1.2.0/24"),
    IPv6Network("2001:db8::/32"),
)


@st.composite
def chains(draw, *, length_min=1):
    """Credentials for a chain that is valid, as long and as narrow as may be."""
    length = draw(st.integers(length_min, CHAIN_LENGTH_MAX))
    links = [
        Credential(
            issuer=MESH,
            subject=A.id,
            name="a",
            tags=draw(st.sampled_from([("*",), TAGS, ("db",), ()])),
            routes=draw(st.sampled_from([ROUTES, ROUTES[1:2], ()])),
            admit=length > 1 or draw(st.booleans()),
            relay=draw(st.booleans()),
            admitted_at=WALL,
            issued_at=WALL,
            expires_at=draw(st.sampled_from([0, WALL + YEAR])),
        )
    ]
    for position in range(1, length):
        parent = links[-1]
        issued_at = parent.issued_at + draw(st.integers(-CLOCK_SKEW_MAX, HOUR))
        given_tags = TAGS if "*" in parent.tags else parent.tags
        end = parent.expires_at
        links.append(
            Credential(
                issuer=parent.subject,
                subject=NODES[position].id,
                name=f"n{position}",
                tags=tuple(draw(st.lists(st.sampled_from(given_tags), unique=True)))
                if given_tags
                else (),
                ipv4=draw(st.sampled_from([None, IPv4Address("100.64.0.7")])),
                routes=tuple(
                    r for r in ROUTES if covered(r, parent.routes) and draw(st.booleans())
                ),
                admit=position < length - 1 or draw(st.booleans()),
                relay=parent.relay and draw(st.booleans()),
                admitted_at=issued_at - draw(st.integers(0, YEAR)),
                issued_at=issued_at,
                expires_at=end - draw(st.integers(0, HOUR)) if end else 0,
                invite=draw(st.sampled_from([None, INVITE_KEY.id])),
                lifetime=draw(st.sampled_from([0, YEAR])),
            )
        )
    assume(sum(map(len, signed(links))) < CHAIN_BYTES_MAX - 50)  # room for a widened link
    return links


def signed(links):
    keys = {key.id: key for key in (*NODES, E)} | {MESH: MESH_KEY}
    return tuple(issue(link, keys[link.issuer], MESH) for link in links)


WIDENINGS = {
    ("admit", "admit is needed"): lambda parent: {"parent": {"admit": False}},
    ("relay", "relay exceeds"): lambda parent: {
        "parent": {"relay": False},
        "link": {"relay": True},
    },
    ("tags", "tags exceed"): lambda parent: {
        "parent": {"tags": ("web",)},
        "link": {"tags": ("web", "db")},
    },
    ("any tag", "tags exceed"): lambda parent: {"parent": {"tags": TAGS}, "link": {"tags": ("*",)}},
    ("wider route", "routes exceed"): lambda parent: {
        "parent": {"routes": ROUTES[1:2]},
        "link": {"routes": ROUTES[:1]},
    },
    ("other route", "routes exceed"): lambda parent: {
        "parent": {"routes": ROUTES[:1]},
        "link": {"routes": ROUTES[3:]},
    },
    ("route", "routes exceed"): lambda parent: {
        "parent": {"routes": ()},
        "link": {"routes": ROUTES[2:3]},
    },
    ("longer life", "outlives"): lambda parent: {
        "parent": {"expires_at": WALL + YEAR},
        "link": {"expires_at": WALL + YEAR + 1},
    },
    ("endless life", "outlives"): lambda parent: {
        "parent": {"expires_at": WALL + YEAR},
        "link": {"expires_at": 0},
    },
    ("issued too early", "older than"): lambda parent: {
        "link": {
            "issued_at": parent.issued_at - CLOCK_SKEW_MAX - 1,
            "admitted_at": parent.issued_at - CLOCK_SKEW_MAX - 1,
        }
    },
    ("issued too late", "expired issuer"): lambda parent: {
        "parent": {"expires_at": parent.issued_at + 1},
        "link": {"issued_at": parent.issued_at + 2 + CLOCK_SKEW_MAX, "expires_at": WALL - YEAR},
    },
}


@given(chains())
def test_a_chain_that_only_narrows_is_verified_and_given_back(links):
    verified = verify_chain_untrusted(signed(links), MESH, links[-1].subject, cache())

    assert list(verified) == links


@pytest.mark.parametrize("widening", WIDENINGS, ids=lambda widening: widening[0])
@settings(max_examples=30)
@given(chains(length_min=2), st.data())
def test_a_chain_that_widens_anywhere_is_refused(widening, links, data):
    position = data.draw(st.integers(1, len(links) - 1))
    change = WIDENINGS[widening](links[position - 1])
    # Further down, what is changed of the parent may be refused before its child is looked at.
    reason = widening[1] if position == 1 else None
    links[position - 1] = replace(links[position - 1], **change.get("parent", {}))
    links[position] = replace(links[position], **change.get("link", {}))

    with pytest.raises(BadPacket, match=reason):
        verify_chain_untrusted(signed(links), MESH, links[-1].subject, cache())


@given(chains(length_min=2), st.data())
def test_a_chain_with_a_link_missing_or_out_of_place_is_refused(links, data):
    blobs = list(signed(links))
    shuffled = data.draw(st.permutations(blobs))
    dropped = data.draw(st.integers(0, len(blobs) - 1))

    for broken in (shuffled, blobs[:dropped] + blobs[dropped + 1 :]):
        if broken != blobs:
            with pytest.raises(BadPacket):
                verify_chain_untrusted(broken, MESH, links[-1].subject, cache())


@given(chains(), st.data())
def test_no_byte_of_a_chain_can_be_changed(links, data):
    blobs = list(signed(links))
    position = data.draw(st.integers(0, len(blobs) - 1))
    changed = bytearray(blobs[position])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    warm = cache()
    verify_chain_untrusted(blobs, MESH, links[-1].subject, warm)

    blobs[position] = bytes(changed)
    with pytest.raises(BadPacket):
        verify_chain_untrusted(blobs, MESH, links[-1].subject, warm)


def test_a_credential_is_for_its_subject_alone():
    chain = founding_chain(A)

    assert verify_chain_untrusted(chain, MESH, A.id, cache())
    with pytest.raises(BadPacket, match="another subject"):
        verify_chain_untrusted(chain, MESH, B.id, cache())


def test_a_chain_of_another_mesh_is_refused():
    chain = founding_chain(A, mesh_key=OTHER_MESH_KEY)

    with pytest.raises(BadPacket, match="bad signature"):
        verify_chain_untrusted(chain, MESH, A.id, cache())


def test_a_chain_does_not_begin_with_a_member():
    by_member = Credential(A.id, B.id, "b", admitted_at=WALL, issued_at=WALL)

    with pytest.raises(BadPacket, match="bad signature"):
        verify_chain_untrusted((issue(by_member, A, MESH),), MESH, B.id, cache())


def test_a_chain_is_neither_empty_nor_longer_than_four():
    chain, holder = founding_chain(A), A
    for key in (B, C, D, E):
        chain = chain_to(key, by=holder, through=chain, name="n", admit=True)
        holder = key

    assert verify_chain_untrusted(chain[:4], MESH, D.id, cache())
    with pytest.raises(BadPacket, match="too long or empty"):
        verify_chain_untrusted(chain, MESH, E.id, cache())
    with pytest.raises(BadPacket, match="too long or empty"):
        verify_chain_untrusted((), MESH, A.id, cache())


def test_a_chain_leaves_room_for_the_rest_of_a_record():
    chain, holder = founding_chain(A, "a" * 63), A
    for key in (B, C, D):
        chain = chain_to(
            key, by=holder, through=chain, name="n" * 63, admit=True, invite=INVITE_KEY.id
        )
        holder = key

    with pytest.raises(BadPacket, match="too many bytes"):
        verify_chain_untrusted(chain, MESH, D.id, cache())


def test_a_credential_has_a_size_limit():
    tags = tuple(letter * 32 for letter in "abcdefgh")
    blob = issue(Credential(MESH, A.id, "a", tags, admitted_at=1, issued_at=1), MESH_KEY, MESH)

    assert len(blob) > CREDENTIAL_BYTES_MAX
    with pytest.raises(BadPacket, match="too long"):
        verify_chain_untrusted((blob,), MESH, A.id, cache())


def test_nobody_is_admitted_after_the_credential_was_issued():
    blob = issue(Credential(MESH, A.id, "a", admitted_at=2, issued_at=1), MESH_KEY, MESH)

    with pytest.raises(BadPacket, match="admitted after"):
        verify_chain_untrusted((blob,), MESH, A.id, cache())


def test_expiry_tolerates_a_wrong_clock_and_zero_is_never():
    ends = Credential(MESH, A.id, "a", expires_at=WALL)

    assert not ends.expired(WALL + CLOCK_SKEW_MAX)
    assert ends.expired(WALL + CLOCK_SKEW_MAX + 1)
    assert not replace(ends, expires_at=0).expired(WALL + 1000 * YEAR)


def test_verification_ignores_expiry():
    chain = chain_to(B, by=A, through=founding_chain(A), name="b", expires_at=WALL + 1)

    assert verify_chain_untrusted(chain, MESH, B.id, cache())[-1].expired(WALL + YEAR)


@pytest.mark.parametrize(("key", "accepted"), [(13, False), (63, False), (70, True), (-1, False)])
def test_an_unknown_field_restricts_unless_it_is_optional(key, accepted):
    body = pack({1: bytes(A.id), 2: "a", 8: WALL, 9: WALL, key: "?"})
    chain = (sign(Statement.CREDENTIAL, MESH, MESH_KEY, body),)

    if accepted:
        assert verify_chain_untrusted(chain, MESH, A.id, cache())[0].name == "a"
    else:
        with pytest.raises(BadPacket, match="unknown critical field"):
            verify_chain_untrusted(chain, MESH, A.id, cache())


def test_a_bad_signature_does_not_get_into_the_cache():
    warm = CredentialCache()
    good = founding_chain(A)[0]
    bad = bytes([good[0] ^ 1]) + good[1:]

    for _ in range(2):
        with pytest.raises(BadPacket):
            verify_chain_untrusted((bad,), MESH, A.id, warm)
    assert len(warm) == 0

    verify_chain_untrusted((good,), MESH, A.id, warm)
    with pytest.raises(BadPacket):
        verify_chain_untrusted((bad,), MESH, A.id, warm)
    assert len(warm) == 1


def test_a_cached_credential_is_for_its_mesh_and_issuer_alone():
    warm = CredentialCache()
    blob = founding_chain(A)[0]
    warm.open_untrusted(blob, MESH, MESH)

    with pytest.raises(BadPacket):
        warm.open_untrusted(blob, MESH, B.id)
    with pytest.raises(BadPacket):
        warm.open_untrusted(blob, OTHER_MESH_KEY.id, MESH)


def test_the_cache_is_bounded_and_forgets_the_oldest():
    warm = CredentialCache(entries_max=3)

    for number in range(10):
        verify_chain_untrusted(founding_chain(A, f"a{number}"), MESH, A.id, warm)

    assert len(warm) == 3


def test_the_founder_may_grant_anything():
    credential = founding_credential(A.id, "a", MESH, WALL)

    assert credential.admit
    assert credential.relay
    assert credential.tags == ("*",)
    assert all(covered(route, credential.routes) for route in ROUTES)
    assert not credential.expired(WALL + 1000 * YEAR)


def test_the_body_is_pinned():
    credential = Credential(
        issuer=MESH,
        subject=A.id,
        name="a",
        tags=("db",),
        ipv4=IPv4Address("100.64.0.7"),
        routes=(IPv4Network("10.0.0.0/8"), IPv6Network("2001:db8::/32")),
        admit=True,
        relay=True,
        admitted_at=WALL,
        issued_at=WALL + 1,
        expires_at=WALL + YEAR,
        invite=INVITE_KEY.id,
        lifetime=2 * YEAR,
    )

    assert issue(credential, MESH_KEY, MESH)[64:].hex() == (
        "8c01c420af06a3e3291714e4f356c19c9b15cd1951ec6e6662aa77be07547f289383341d"
        "02a161"
        "0391a26462"
        "04c40464400007"
        "0592c4050a00000008c41120010db800000000000000000000000020"
        "06c3"
        "07c3"
        "08ce6553f100"
        "09ce6553f101"
        "0ace67352480"
        "0bc420e34d3a01b6112e1429ead61668405f4ef4be4f8853abee5079d28ac6c13ffdd0"
        "40ce03c26700"
    )
