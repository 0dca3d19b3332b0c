"""Finding a secret in whatever a program has put out, in all the forms it may have there.

Inside a longer text base64 begins at any of three bits, base32 at any of five: what is looked for
is the part that the secret alone decides.
"""

import base64
import json

CHARS_MIN = 8  # what is shorter would occur by chance


def forms_of(secret):
    """Return everything that would give a secret away: texts, each with the form's name."""
    forms = {"hex": secret.hex(), "HEX": secret.hex().upper()}
    forms["escaped"] = repr(secret)[2:-1]
    for name, encode, group in (
        ("base64", base64.b64encode, 3),
        ("base64url", base64.urlsafe_b64encode, 3),
        ("base32", base64.b32encode, 5),
    ):
        for shift in range(group):
            text = _inner(secret, encode, group, shift)
            forms[f"{name} at {shift}"] = text
            if name == "base32":
                forms[f"{name} lower at {shift}"] = text.lower()
    if secret.isascii() and secret.decode().isprintable():
        forms["text"] = secret.decode()
        forms["json"] = json.dumps(secret.decode())[1:-1]
    return {name: text for name, text in forms.items() if len(text) >= CHARS_MIN}


def _inner(secret, encode, group, shift):
    """Encode a secret that begins `shift` bytes into a group, without what neighbours decide."""
    body = encode(bytes(shift) + secret).decode().rstrip("=")
    bits = 6 if group == 3 else 5
    first = -(-shift * 8 // bits)
    whole = (shift + len(secret)) * 8 // bits
    return body[first:whole]


class Search:
    """The secrets of one run, and where they were found."""

    def __init__(self):
        self._forms = {}  # text or bytes to what it is
        self.names = set()

    def add(self, name, secret):
        """Take a secret, under a name that a failure may show."""
        assert secret, f"there is no {name}"
        self.names.add(name)
        self._forms[secret] = f"{name}, raw"
        for form, text in forms_of(secret).items():
            self._forms[text.encode()] = f"{name}, {form}"

    def found_in(self, output):
        """Return what is in some output, by name and form."""
        data = output.encode() if isinstance(output, str) else output
        return [what for needle, what in self._forms.items() if needle in data]
