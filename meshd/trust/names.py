"""Which member is shown under which name.

Rule 1: a name belongs to the member that was admitted first, the lower node id among equals.

Rule 2: each other member of that name, in the same order, is shown as `name-2`, `name-3`, …: the
        first of these that nobody else is called or shown as.

Both depend on signed facts alone, so a member has one name on every node.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from meshd.trust.grammar import NAME_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.keys import NodeId
    from meshd.trust.credential import Credential


class Names:
    """The names of a set of members, given their own credentials."""

    def __init__(self, credentials: Iterable[Credential]) -> None:
        self.owners: dict[str, NodeId] = {}
        self.shown: dict[NodeId, str] = {}
        others: list[Credential] = []
        for credential in sorted(credentials, key=_seniority):
            if credential.name in self.owners:
                others.append(credential)
            else:
                self.owners[credential.name] = credential.subject
                self.shown[credential.subject] = credential.name
        taken = set(self.owners)
        next_number: dict[str, int] = {}
        for credential in others:
            for number in itertools.count(next_number.get(credential.name, 2)):
                name = _numbered(credential.name, number)
                if name not in taken:
                    break
            next_number[credential.name] = number + 1
            taken.add(name)
            self.shown[credential.subject] = name


def _seniority(credential: Credential) -> tuple[int, NodeId]:
    return credential.admitted_at, credential.subject


def _numbered(name: str, number: int) -> str:
    suffix = f"-{number}"
    return name[: NAME_BYTES_MAX - len(suffix)].rstrip("-") + suffix
