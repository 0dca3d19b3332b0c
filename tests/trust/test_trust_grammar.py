import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.codec import Fields
from meshd.errors import BadPacket
from meshd.trust.grammar import clean_name, is_name, is_tag, name_untrusted, tags_untrusted

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)


@given(st.text())
def test_any_hostname_gives_a_valid_name(hostname):
    assert is_name(clean_name(hostname))


@given(names)
def test_a_valid_name_is_left_as_it_is(name):
    assert is_name(name)
    assert clean_name(name) == name


@pytest.mark.parametrize(
    ("hostname", "name"),
    [
        ("web", "web"),
        ("Web_01.example.com", "web-01"),
        ("  Jürgen's Laptop ", "jurgen-s-laptop"),
        ("-x-", "x"),
        ("a" * 62 + "-" + "b", "a" * 62),
        ("localhost.localdomain", "localhost"),
        ("", "node"),
        (".example.com", "node"),
        ("日本", "node"),
    ],
)
def test_a_name_stays_near_its_hostname(hostname, name):
    assert clean_name(hostname) == name


@pytest.mark.parametrize("text", ["", "-a", "a-", "A", "a.b", "a_b", "a" * 64, "ä", "a\n", "a b"])
def test_what_is_no_dns_label_is_no_name(text):
    assert not is_name(text)
    with pytest.raises(BadPacket):
        name_untrusted(Fields({1: text}, what="test"), 1)


def test_a_name_may_be_left_out_only_where_a_default_is_given():
    assert name_untrusted(Fields({}, what="test"), 1, default="") == ""
    with pytest.raises(BadPacket):
        name_untrusted(Fields({}, what="test"), 1)


def test_a_tag_is_a_label_or_the_star():
    assert is_tag("db")
    assert is_tag("*")
    assert not is_tag("**")
    assert not is_tag("a" * 33)


@pytest.mark.parametrize("tags", [("a", 1), ("A",), ("a",) * 9, "a", (b"a",)])
def test_malformed_tags_are_refused(tags):
    with pytest.raises(BadPacket):
        tags_untrusted(Fields({1: tags}, what="test"), 1)
