"""What lies on the disk: who may read it, and what it gives away to whoever does."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshd import keys
from meshd.control.socket import ControlSocket
from meshd.errors import BadPacket, StartError
from meshd.keys import MeshId, NodeKey, PresharedKey
from meshd.preshared.keys import Keyring, SharedKey
from meshd.state_directory import KEY_CREDENTIAL, given_node_key
from meshd.store import Secret, Store
from meshd.strongbox import Strongbox, is_locked

MESH = MeshId(b"m" * 32)
SEED = bytes(range(32))
SECRET = b"\xa5\x5a" * 16
PAIR_SECRET = b"\x3c\xc3" * 16
OTHERS = [0o640, 0o604, 0o660, 0o601]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "mesh0"


def bind(path, given=None, secret=SECRET):
    with Store.open(path, given) as store:
        store.bind(MESH)
        store.save_secret(Secret.BOOTSTRAP_KEY, secret)


def on_disk(path):
    return b"".join(file.read_bytes() for file in path.iterdir())


def credential(directory, text=None):
    """Return the environment of a unit that has been given the node key."""
    directory.mkdir()
    content = base64.b64encode(SEED).decode() if text is None else text
    (directory / KEY_CREDENTIAL).write_text(content + "\n")
    return {"CREDENTIALS_DIRECTORY": str(directory)}


# Modes and owners


@pytest.mark.parametrize("mode", OTHERS, ids=oct)
@pytest.mark.parametrize("name", ["node.key", "mesh.db", "mesh.db-wal", "mesh.db-shm"])
def test_state_that_others_have_a_right_to_is_refused_and_left_as_it_is(path, name, mode):
    bind(path)
    file = path / name
    file.touch(mode=0o600)
    file.chmod(mode)
    content = file.read_bytes()

    with pytest.raises(StartError, match=rf"{name}: has mode {mode:04o}.*chmod 600"):
        Store.open(path)

    assert file.stat().st_mode & 0o777 == mode
    assert file.read_bytes() == content
    file.chmod(0o600)
    Store.open(path).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("name", ["node.key", "mesh.db", "."])
def test_state_of_another_user_is_refused(path, name):
    bind(path)
    os.chown(path / name, 4711, 4711)

    with pytest.raises(StartError, match=r"belongs to user 4711 and meshd runs as 0; chown it"):
        Store.open(path)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_no_umask_opens_the_state_to_others(path, umask):
    path.parent.mkdir()
    program = (
        "import os, sys; os.umask(int(sys.argv[1])); from pathlib import Path;"
        "from meshd.store import Store, Secret; from meshd.keys import MeshId;"
        "store = Store.open(Path(sys.argv[2])); store.bind(MeshId(b'm' * 32));"
        "store.save_secret(Secret.BOOTSTRAP_KEY, b's' * 32);"
        "print(*[f.stat().st_mode & 0o777 for f in sorted(Path(sys.argv[2]).iterdir())])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(umask), str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    # Before it is closed, so that the files beside the database are there.
    modes = {int(mode) for mode in done.stdout.split()}

    assert modes
    assert not any(mode & 0o077 for mode in modes), done.stdout
    assert path.stat().st_mode & 0o777 == 0o700


# Locking


def test_a_node_key_that_was_given_is_not_put_on_disk(path, tmp_path):
    given = given_node_key(credential(tmp_path / "credentials"))
    assert given.id == NodeKey(SEED).id

    bind(path, given)

    assert not (path / "node.key").exists()
    content = on_disk(path)
    assert SEED not in content
    assert base64.b64encode(SEED) not in content


def test_beside_a_given_node_key_all_secrets_are_locked(path):
    bind(path, NodeKey(SEED))
    other, ring = NodeKey(bytes(32)).id, Keyring((SharedKey(PresharedKey(PAIR_SECRET), 1),))
    with Store.open(path, NodeKey(SEED)) as store:
        store.save_keyring(other, ring)
        assert store.load_keyrings() == {other: ring}

    assert SECRET not in on_disk(path)
    assert PAIR_SECRET not in on_disk(path)
    with Store.open(path, NodeKey(SEED)) as store:
        assert store.load_secret(Secret.BOOTSTRAP_KEY) == SECRET


def test_a_state_in_clear_is_locked_when_its_key_has_become_a_credential(path):
    bind(path)
    with Store.open(path) as store:
        other, ring = NodeKey(bytes(32)).id, Keyring((SharedKey(PresharedKey(PAIR_SECRET), 1),))
        store.save_keyring(other, ring)
    assert SECRET in on_disk(path)
    assert PAIR_SECRET in on_disk(path)
    seed = base64.b64decode((path / "node.key").read_text())
    (path / "node.key").unlink()

    with Store.open(path, NodeKey(seed)) as store:
        assert store.load_secret(Secret.BOOTSTRAP_KEY) == SECRET
        assert store.load_keyrings() == {other: ring}
        assert SECRET not in on_disk(path)
        assert PAIR_SECRET not in on_disk(path)
    assert SECRET not in on_disk(path)


def test_a_locked_state_opens_with_the_key_back_on_disk(path):
    bind(path, NodeKey(SEED))
    key = path / "node.key"
    key.touch(mode=0o600)
    key.write_bytes(base64.b64encode(SEED))

    with Store.open(path) as store:
        assert store.load_secret(Secret.BOOTSTRAP_KEY) == SECRET


def test_a_locked_state_without_its_credential_says_what_is_missing(path):
    bind(path, NodeKey(SEED))

    with pytest.raises(
        StartError, match=f"put the right node.key back, or the credential {KEY_CREDENTIAL}"
    ):
        Store.open(path)

    assert not (path / "node.key").exists()


def test_a_key_in_clear_beside_the_credential_is_refused(path):
    bind(path)

    with pytest.raises(
        StartError, match=f"node.key: is there beside the credential {KEY_CREDENTIAL}"
    ):
        Store.open(path, NodeKey(SEED))


@pytest.mark.parametrize("text", ["", "rubbish!", base64.b64encode(b"short").decode()])
def test_a_credential_that_is_no_key_is_named(tmp_path, text):
    environment = credential(tmp_path / "credentials", text)

    with pytest.raises(StartError, match=rf"credential .*{KEY_CREDENTIAL}: is damaged"):
        given_node_key(environment)


def test_no_credential_is_no_key(tmp_path):
    assert given_node_key({}) is None
    assert given_node_key({"CREDENTIALS_DIRECTORY": str(tmp_path)}) is None


def test_what_was_locked_opens_with_the_right_key_and_unchanged_only():
    box = Strongbox(SEED)
    locked = box.lock(SECRET)
    assert is_locked(locked)
    assert box.unlock_untrusted(locked) == SECRET
    assert box.unlock_untrusted(SECRET) == SECRET
    assert box.lock(SECRET) != locked

    changed = [locked[:-1], locked + b"\0", locked[:20], locked[:-1] + bytes([locked[-1] ^ 1])]
    for stored in changed:
        with pytest.raises(BadPacket):
            box.unlock_untrusted(stored)
    with pytest.raises(BadPacket):
        Strongbox(bytes(32)).unlock_untrusted(locked)


def test_a_secret_that_was_replaced_is_gone_from_the_files(path):
    bind(path)
    bind(path, secret=b"another secret of thirty-two byt")
    with Store.open(path) as store:
        store.delete_secret(Secret.BOOTSTRAP_KEY)

    assert SECRET not in on_disk(path)
    assert b"another secret of thirty-two byt" not in on_disk(path)


# Secrets never show themselves


def test_no_secret_type_shows_its_bytes():
    raw = bytes(range(100, 132))
    kinds = [
        kind
        for kind in vars(keys).values()
        if isinstance(kind, type) and issubclass(kind, keys._SecretKey | keys._SigningKey)
    ]
    shown = [kind for kind in kinds if not kind.__name__.startswith("_")]
    assert len(shown) >= 6, "the key types are found"

    for kind in shown:
        secret = kind(raw)
        texts = [repr(secret), str(secret), f"{secret}", f"{secret!r}", repr([secret])]
        texts += ["%s" % (secret,), repr({"key": secret})]  # noqa: UP031 - as logging does
        held = getattr(secret, "seed", secret)
        forms = [bytes(held).hex(), base64.b64encode(held).decode(), repr(bytes(held))[2:-1]]
        for text in texts:
            assert not any(form in text for form in forms), (kind, text)


# The control socket


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777], ids=oct)
def test_a_directory_in_which_others_could_replace_the_socket_is_refused(tmp_path, mode):
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(mode)

    with pytest.raises(StartError, match=rf"run: has mode {mode:04o}.*chmod go-w"):
        ControlSocket.listen(directory / "mesh0.sock")

    assert list(directory.iterdir()) == []
    directory.chmod(mode | 0o1000)  # as /tmp: nobody replaces what is another's
    ControlSocket.listen(directory / "mesh0.sock").close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give directories away")
def test_a_directory_of_another_user_is_no_place_for_the_socket(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    os.chown(directory, 4711, 4711)

    with pytest.raises(StartError, match="belongs to user 4711, who could pose as this daemon"):
        ControlSocket.listen(directory / "mesh0.sock")
