"""One direction of a relayed pair, as the shell sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.wg.types import Endpoint


@dataclass(frozen=True, slots=True)
class Flow:
    """What comes from `source` to `arrives_at` leaves from `leaves_from` to `target`."""

    source: Endpoint
    arrives_at: Endpoint
    leaves_from: Endpoint
    target: Endpoint
