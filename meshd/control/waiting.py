"""What `meshctl wait` can wait for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.control.snapshot import MemberSnapshot, MeshSnapshot


@dataclass(frozen=True, slots=True)
class Condition:
    """Everything that is given must hold at once; given nothing, the node must be ready."""

    members: int | None = None  # at least so many alive, this node among them
    name: str | None = None
    state: str | None = None  # of the member named; None means alive
    path: str | None = None  # of the member named, or of every other member that is alive

    def lacks(self, mesh: MeshSnapshot) -> str | None:
        """Return what does not hold yet, in words; None when all of it holds."""
        if not mesh.me.ready:
            return "this node is not ready"
        alive = mesh.count("alive")
        if self.members is not None and alive < self.members:
            return f"{alive} of {self.members} members are alive{_others(mesh)}"
        if self.name is not None:
            return self._lacks_in_member(mesh, self.name)
        if self.path is not None:
            for member in mesh.members:
                if member.state == "alive" and member.path != self.path:
                    return _wrong_path(member)
        return None

    def _lacks_in_member(self, mesh: MeshSnapshot, name: str) -> str | None:
        member = next((member for member in mesh.members if member.name == name), None)
        if member is None:
            return f"no member is called {name!r}"
        if member.state != (self.state or "alive"):
            return f"{name} is {member.state}"
        if self.path is not None and member.path != self.path:
            return _wrong_path(member)
        return None


def _wrong_path(member: MemberSnapshot) -> str:
    return f"{member.name} has {'no path' if member.path is None else f'a {member.path} path'}"


def _others(mesh: MeshSnapshot) -> str:
    others = sorted((m.name, m.state) for m in mesh.members if m.state in {"suspect", "dead"})
    shown = ", ".join(f"{name} is {state}" for name, state in others[:3])
    return f": {shown}{' …' if len(others) > 3 else ''}" if others else ""
