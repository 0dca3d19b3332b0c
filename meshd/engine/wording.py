"""Why a member is shown otherwise, in words for people and in fields for programs.

    member-suspect   suspected by a after no ack in 300 ms and no indirect ack from c, d
    member-dead      suspected by a, c, d and e, and silent for 0.6 s since
    member-alive     refuted the suspicion

The fields of each event are the same in every language, so to speak: `cause` is a value of
`CauseKind`, `accusers` and `asked` are names, `waited_ms` and `silent_for_s` are numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.gossip.cause import CauseKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from meshd.engine.events import Detail
    from meshd.gossip.cause import Cause
    from meshd.gossip.claim import Testimony
    from meshd.keys import NodeId


class Wording:
    """Puts causes into words, given how nodes are called."""

    def __init__(
        self, name_of: Callable[[NodeId], str], nodes: Callable[[], Iterable[NodeId]]
    ) -> None:
        """`nodes` returns all that may be meant by the beginning of an id."""
        self._name_of = name_of
        self._nodes = nodes

    def text(self, cause: Cause) -> str:
        """Return a cause as the end of a sentence whose subject is the member."""
        accusers = _listed([self._name_of(node) for node in cause.accusers])
        match cause.kind:
            case CauseKind.HEARD:
                return "heard through its tunnel"
            case CauseKind.CLAIMED:
                return "alive by its own word"
            case CauseKind.REFUTED:
                return "alive: it has refuted the suspicion"
            case CauseKind.SUSPECTED:
                return f"suspected by {accusers}{self._tried(cause.testimony)}"
            case CauseKind.UNREFUTED:
                return f"suspected by {accusers}, and silent for {cause.silent_for:.1f} s since"
            case CauseKind.LEFT:
                return "left the mesh"
            case CauseKind.RETRACTED:
                return "no longer suspected: who suspected it is a member no more"

    def details(self, cause: Cause) -> Mapping[str, Detail]:
        """Return a cause as JSON fields."""
        details: dict[str, Detail] = {"cause": cause.kind.value}
        if cause.accusers:
            details["accusers"] = tuple(self._name_of(node) for node in cause.accusers)
        if cause.testimony is not None:
            details["waited_ms"] = round(cause.testimony.waited * 1000)
            details["asked"] = self._asked(cause.testimony)
        if cause.kind is CauseKind.UNREFUTED:
            details["silent_for_s"] = round(cause.silent_for, 3)
        return details

    def _tried(self, testimony: Testimony | None) -> str:
        if testimony is None:
            return ""
        if testimony.refused:
            return ": its host answers that nobody listens there"
        text = f" after no ack in {testimony.waited * 1000:.0f} ms"
        if testimony.asked:
            text += f" and no indirect ack from {', '.join(self._asked(testimony))}"
        return text

    def _asked(self, testimony: Testimony) -> tuple[str, ...]:
        return tuple(self._called(prefix) for prefix in testimony.asked)

    def _called(self, prefix: bytes) -> str:
        for node in self._nodes():
            if node.startswith(prefix):
                return self._name_of(node)
        return prefix.hex()  # a member that we do not know


def _listed(names: list[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
