"""The short code that a newcomer and a member both show: `XXXX-XXXX`, of A to Z and 2 to 7."""

from __future__ import annotations

import base64
import re

CODE_BYTES = 5  # 40 bits
_CODE = re.compile(r"[A-Z2-7]{8}")


def format_code(digest: bytes) -> str:
    """Return a code as it is shown."""
    assert len(digest) == CODE_BYTES
    text = base64.b32encode(digest).decode()
    return f"{text[:4]}-{text[4:]}"


def parse_code(text: str) -> str | None:
    """Return a code as it is shown, from what a person has typed; None if it is none."""
    letters = text.replace("-", "").replace(" ", "").upper()
    return f"{letters[:4]}-{letters[4:]}" if _CODE.fullmatch(letters) else None
