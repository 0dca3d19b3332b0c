"""Words that findings share."""

from __future__ import annotations

LISTED_MAX = 5


def listed(names: list[str]) -> str:
    """Return names as a sentence has them; of many, the first few."""
    shown = ", ".join(names[:LISTED_MAX])
    return f"{shown} and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else shown
