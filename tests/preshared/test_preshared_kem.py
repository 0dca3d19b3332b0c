"""What is asked of a KEM, of the fake and of the real one; and that the real one is ML-KEM-768."""

import hashlib
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from meshd.daemon.mlkem import MlKem768Key, load
from meshd.errors import BadPacket
from meshd.preshared.kem import CIPHERTEXT_BYTES, PUBLIC_BYTES, SECRET_BYTES
from preshared.preshared_kem import FakeKem


@pytest.fixture(params=["fake", "real"])
def kem(request):
    return FakeKem("seed") if request.param == "fake" else load()


def test_both_ends_come_to_one_secret(kem):
    key = kem.generate()

    secret, ciphertext = kem.encapsulate_untrusted(key.public)

    assert key.decapsulate_untrusted(ciphertext) == secret
    assert (len(key.public), len(ciphertext), len(secret)) == (
        PUBLIC_BYTES,
        CIPHERTEXT_BYTES,
        SECRET_BYTES,
    )


def test_nothing_comes_twice(kem):
    first, second = kem.generate(), kem.generate()

    assert first.public != second.public
    assert kem.encapsulate_untrusted(first.public) != kem.encapsulate_untrusted(first.public)


def test_another_key_or_another_ciphertext_gives_another_secret_and_no_error(kem):
    key, other = kem.generate(), kem.generate()
    secret, ciphertext = kem.encapsulate_untrusted(key.public)
    changed = bytes([ciphertext[0] ^ 1]) + ciphertext[1:]

    assert other.decapsulate_untrusted(ciphertext) != secret
    assert key.decapsulate_untrusted(changed) != secret


@pytest.mark.parametrize("size", [0, 1, PUBLIC_BYTES - 1, PUBLIC_BYTES + 1])
def test_what_is_no_public_key_is_a_bad_packet(kem, size):
    with pytest.raises(BadPacket):
        kem.encapsulate_untrusted(b"\1" * size)


@pytest.mark.parametrize("size", [0, 1, CIPHERTEXT_BYTES - 1, CIPHERTEXT_BYTES + 1])
def test_what_is_no_ciphertext_is_a_bad_packet(kem, size):
    with pytest.raises(BadPacket):
        kem.generate().decapsulate_untrusted(b"\1" * size)


def test_a_public_key_with_coefficients_out_of_range_is_a_bad_packet():
    """FIPS 203 section 7.2: the modulus check."""
    with pytest.raises(BadPacket):
        load().encapsulate_untrusted(b"\xff" * PUBLIC_BYTES)


# Of FIPS 203's own: what a known seed gives, and Algorithm 18 where a ciphertext was not made for
# the key: the secret is then SHAKE256(z, ciphertext), z being the second half of the seed.
SEED = bytes.fromhex(
    "cbfc4405d1b2a3a386c94c25e0f2d5f5ee92cb0388ff4d6aa04223086d51c3fd"
    "24752da14c9fc3b8ae0d9e4a8b1016b8d8fc69e229c03ea2ef08a4ae0cffc37f"
)
PUBLIC_SHA256 = "67fe2cb60768d55758c67bfd5842692dedb14513d581c48db2cd3adf94568106"


def test_a_known_seed_gives_the_known_public_key():
    public = MlKem768Key(MLKEM768PrivateKey.from_seed_bytes(SEED)).public

    assert hashlib.sha256(public).hexdigest() == PUBLIC_SHA256


def test_a_foreign_ciphertext_is_rejected_implicitly():
    key = MlKem768Key(MLKEM768PrivateKey.from_seed_bytes(SEED))
    ciphertext = hashlib.shake_128(b"any").digest(CIPHERTEXT_BYTES)

    assert key.decapsulate_untrusted(ciphertext) == hashlib.shake_256(
        SEED[32:] + ciphertext
    ).digest(32)


def test_it_is_imported_when_it_is_first_wanted_and_not_before():
    """It takes 20 ms and 8 MiB, and a start has no use for it."""
    check = (
        "import sys, meshd.cli, meshd.daemon.daemon, meshd.daemon.mlkem as mlkem\n"
        "assert 'cryptography' not in sys.modules\n"
        "assert mlkem.load() is not None\n"
        "assert 'cryptography' in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", check], check=True)


@pytest.mark.parametrize(
    "lacking",
    [
        "sys.modules['cryptography'] = None",
        "sys.modules['cryptography.hazmat.primitives.asymmetric.mlkem'] = None",
        """
import cryptography.hazmat.primitives.asymmetric.mlkem as m
from cryptography.exceptions import UnsupportedAlgorithm
def refuse():
    raise UnsupportedAlgorithm('not in this build')
m.MLKEM768PrivateKey.generate = refuse
""",
    ],
    ids=["no package", "an old package", "a build without it"],
)
def test_a_machine_without_it_is_no_error(lacking):
    check = f"import sys\n{lacking}\nfrom meshd.daemon.mlkem import load\nassert load() is None\n"

    subprocess.run([sys.executable, "-c", check], check=True)
