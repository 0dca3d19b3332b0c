"""What both sides of a bootstrap tell their driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from meshd.bootstrap.messages import AdmissionRequest, Answer, Request
    from meshd.trust.refusal import Refusal
    from meshd.wg.types import Endpoint


@dataclass(frozen=True, slots=True)
class RequestOpened:
    """Somebody with the bootstrap key asks to be let in.  Judge, then call `Responder.answer`.

    A member that may not admit sends `handover` to one that may.
    """

    reference: bytes
    request: Request
    source: Endpoint
    handover: AdmissionRequest | None  # None for a request that brings a record


@dataclass(frozen=True, slots=True)
class ResolveSeeds:
    """The seeds' names want looking up: call `Joiner.seeds_resolved`, with what could be."""

    seeds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """A member has let us in, or let us in again.  The last event of a joiner."""

    answer: Answer
    chain: tuple[bytes, ...]  # verified; () if we have brought our own
    seed: Endpoint  # where the answer came from
    rtt: float  # seconds


@dataclass(frozen=True, slots=True)
class RefusedByMesh:
    """A member says no.  When the refusal is final the joiner has stopped."""

    refusal: Refusal
    seed: Endpoint
    revocation: bytes = b""  # what puts us out, if that is why; not yet verified


@dataclass(frozen=True, slots=True)
class Silent:
    """Nobody has answered for a while; said once.

    A wrong secret, a seed that is down and a blocked port look alike from here.
    """

    seeds: tuple[str, ...]
    tried: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class BadPacketReceived:
    """Somebody sent something it must not."""

    source: Endpoint
    reason: str


ResponderEvent: TypeAlias = RequestOpened | BadPacketReceived
JoinerEvent: TypeAlias = ResolveSeeds | Joined | RefusedByMesh | Silent | BadPacketReceived
