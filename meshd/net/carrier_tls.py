"""TLS around what is carried: it passes where only TLS does, and protects nothing.

Everything inside is sealed and authenticated end to end already, so the relay host makes itself a
certificate with each start, in memory, and members do not look at it.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime, timedelta

CERTIFICATE_LIFETIME = timedelta(days=365)
PROTOCOLS = ["http/1.1"]  # what most of TLS is for


def host_context() -> ssl.SSLContext:
    """Return what a relay host takes connections with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(PROTOCOLS)
    # `ssl` reads files only: one that is in memory, has no name, and is gone when it is closed.
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, _certificate())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def member_context() -> ssl.SSLContext:
    """Return what a member connects with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(PROTOCOLS)
    return context


def _certificate() -> bytes:
    """Return a fresh key and a certificate for it, as PEM."""
    # Only relay hosts need these, and they take 30 ms to import.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, os.urandom(8).hex())])
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today)
        .not_valid_after(today + CERTIFICATE_LIFETIME)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
