"""Approval mode of a member: hands datagrams to the window, and tells the operator who asks.

The core is `meshd.bootstrap.approval_member`.  The window is opened, and decisions are made, by the
operator of this member alone; what the approved one gets is made by the daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.bootstrap.approval_member import ApprovalWindow
from meshd.engine import events

if TYPE_CHECKING:
    from random import Random

    from meshd.bootstrap.approval import Reply
    from meshd.bootstrap.approval_member import Pending
    from meshd.codec import IPAddress
    from meshd.engine.engine import Engine
    from meshd.underlay import Outgoing, Timer
    from meshd.wg.types import Endpoint


class Approval:
    """Owns the window."""

    def __init__(self, engine: Engine, *, rng: Random, now: float) -> None:
        self._engine = engine
        self._window = ApprovalWindow(rng=rng, now=now)

    # Inputs

    def receive(
        self, datagram: bytes, source: Endpoint, local: IPAddress | None, now: float
    ) -> bool:
        """Handle a newcomer's datagram, which may be anything at all.  Return if it was let in."""
        return self._window.receive_datagram(datagram, source, local, now)

    def open(self, span: float, now: float, _wall: float) -> None:
        """Let newcomers ask for so many seconds."""
        self._window.open(now, span)

    def close(self, _now: float, _wall: float) -> None:
        """Answer no newcomer any more."""
        self._window.close()

    def decide(self, code: str, reply: Reply, _now: float, _wall: float) -> bool:
        """Have the newcomer with a code told.  Return whether it still waits."""
        return self._window.decide(code, reply)

    def handle_timer(self, now: float) -> None:
        """Close the window, and let go of those who have gone."""
        self._window.handle_timer(now)

    def settle(self) -> bool:
        """Tell of those who ask.  Return whether anybody does."""
        busy = False
        while (pending := self._window.next_news()) is not None:
            busy = True
            # Without the code: that is to be read off the newcomer's own screen.
            self._engine.emit(
                events.Notice(
                    "approval-wanted",
                    f"{pending.name} at {pending.source.address} asks to be let in; "
                    "`meshctl pending` shows the code that it must show, too",
                    pending.node,
                    pending.name,
                )
            )
        for reason, count in self._window.bad_packets.items():
            self._engine.bad_packets[reason] += count
        self._window.bad_packets.clear()
        return busy

    # Outputs

    @property
    def until(self) -> float | None:
        """When the window closes; None while it is closed."""
        return self._window.until

    def pending(self) -> tuple[Pending, ...]:
        """Return those who have asked."""
        return self._window.pending()

    def datagrams_to_send(self) -> list[Outgoing]:
        """Take the queued datagrams."""
        return self._window.datagrams_to_send()

    def get_timer(self) -> Timer | None:
        """Return the soonest deadline."""
        return self._window.get_timer()
