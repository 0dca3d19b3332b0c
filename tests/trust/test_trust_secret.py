import pytest

from meshd.errors import UsageError
from meshd.trust.secret import SECRET_LENGTH_MAX, SECRET_LENGTH_MIN, derive

PASSPHRASE = b"correct horse battery staple"


def test_a_passphrase_means_one_mesh_everywhere():
    mesh_key, bootstrap_key = derive(PASSPHRASE)

    assert mesh_key.id.hex() == "6424de646fdabe668419e5af109468bd05267c87ea239eefa6a6b5f0249c1ca2"
    assert (
        bytes(bootstrap_key).hex()
        == "c134b8e65bd53d55d091b49316add53cada41e195107ae9f38bd32a765f146f7"
    )


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_trailing_newline_is_not_part_of_it(ending):
    assert derive(PASSPHRASE + ending)[1] == derive(PASSPHRASE)[1]


def test_everything_else_is():
    assert (
        len({bytes(derive(text)[1]) for text in (PASSPHRASE, PASSPHRASE + b" ", b" " + PASSPHRASE)})
        == 3
    )


@pytest.mark.parametrize("text", [b"", b"\n", b"x" * (SECRET_LENGTH_MIN - 1) + b"\n"])
def test_a_short_passphrase_is_refused(text):
    with pytest.raises(UsageError, match=f"at least {SECRET_LENGTH_MIN}"):
        derive(text)


def test_a_wrong_file_is_refused_without_being_repeated():
    with pytest.raises(UsageError, match="right file") as caught:
        derive(b"hunter2" * SECRET_LENGTH_MAX)
    assert "hunter2" not in str(caught.value)


def test_no_key_is_shown():
    mesh_key, bootstrap_key = derive(PASSPHRASE)

    for secret, shown in ((mesh_key.seed, repr(mesh_key)), (bootstrap_key, repr(bootstrap_key))):
        assert bytes(secret).hex() not in shown
        assert repr(bytes(secret))[2:-1] not in shown
