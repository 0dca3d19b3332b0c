"""Fields of a request, read one by one; whatever is wrong with them is a `bad-request`.

`Fields.done` must be called last: it refuses what no getter has asked for, because an option that
is silently ignored is worse than one that is refused.
"""

from __future__ import annotations

import math
from difflib import get_close_matches
from ipaddress import ip_network
from typing import TYPE_CHECKING

from meshd.control.routes import bad_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.codec import IPNetwork

TEXT_LENGTH_MAX = 256
ITEMS_MAX = 64


class Fields:
    """A JSON object or a query string.  Absent fields, and null ones, give the default."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values
        self._asked: dict[str, None] = {}

    def _get(self, key: str) -> object:
        self._asked[key] = None
        return self._values.get(key)

    def text(self, key: str, *, length_max: int = TEXT_LENGTH_MAX) -> str | None:
        """Read a string that is not empty."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not 0 < len(value) <= length_max:
            raise bad_request(f"{key} must be text of 1 to {length_max} characters")
        return value

    def needed_text(self, key: str) -> str:
        """Read a string that must be there."""
        value = self.text(key)
        if value is None:
            raise bad_request(f"{key} is missing")
        return value

    def choice(self, key: str, choices: tuple[str, ...]) -> str | None:
        """Read one of a few words."""
        value = self.text(key)
        if value is not None and value not in choices:
            raise bad_request(f"{key} must be one of {', '.join(choices)}")
        return value

    def number(self, key: str, *, minimum: float, maximum: float, default: float) -> float:
        """Read a number within bounds; in a query string it is written in digits."""
        value = self._get(key)
        if value is None:
            return float(default)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                value = math.nan
        # A bool is an int in Python; NaN compares false with any bound.
        if isinstance(value, bool) or not isinstance(value, int | float):
            value = math.nan
        if not minimum <= value <= maximum:
            raise bad_request(f"{key} must be a number from {minimum:.12g} to {maximum:.12g}")
        return float(value)

    def whole(self, key: str, *, minimum: int, maximum: int, default: int) -> int:
        """Read a whole number within bounds."""
        value = self.number(key, minimum=minimum, maximum=maximum, default=default)
        if not value.is_integer():
            raise bad_request(f"{key} must be a whole number")
        return int(value)

    def flag(self, key: str) -> bool:
        """Read a bool, false by default; in a query string it is 0 or 1."""
        value = self._get(key)
        if value is None or value is False or value == "0":
            return False
        if value is True or value == "1":
            return True
        raise bad_request(f"{key} must be true or false")

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a list of strings."""
        value = self._get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > ITEMS_MAX:
            raise bad_request(f"{key} must be a list of up to {ITEMS_MAX}")
        return tuple(Fields({key: item}).needed_text(key) for item in value)

    def networks(self, key: str) -> tuple[IPNetwork, ...]:
        """Read a list of IP networks in CIDR notation."""
        networks = []
        for text in self.texts(key):
            try:
                networks.append(ip_network(text))
            except ValueError as exc:
                raise bad_request(f"{key}: {exc}") from exc
        return tuple(networks)

    def done(self) -> None:
        """Refuse what has not been asked for."""
        for key in self._values:
            if key not in self._asked:
                close = get_close_matches(key, self._asked, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise bad_request(f"unknown field {key!r}{hint}")
