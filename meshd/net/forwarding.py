"""Switching the kernel's forwarding on where a relay needs it, and putting it back.

| the host                  | IPv4                               | IPv6                            |
| ------------------------- | ---------------------------------- | ------------------------------- |
| forwards already          | left as it is                      | left as it is                   |
| does not                  | on for the interfaces concerned    | on for all: it knows no less    |
| begins to by itself later | no fence, nothing is ours any more | cannot be told: the fence stays |

Rule 1: what is switched on is noted on disk first, so that nothing stays behind unknown.

Rule 2: the fence (`meshd.net.relay_nft.Fence`) is there before forwarding is, and goes after it.

Rule 3: a host that forwards IPv6 takes no more router advertisements, and drops the default routes
        it had from them, unless `accept_ra` is 2.  So what is 1 is made 2 before.

Rule 4: a note is good for one boot and one network namespace: after that the kernel has forgotten.

Values are in /proc/sys/net: see networking/ip-sysctl.rst of the kernel.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshd.errors import DeviceError
from meshd.net.relay_nft import Fence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT: Final = Path("/proc/sys/net")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE: Final = Path("/proc/self/ns/net")

INTERFACES_MAX = 4096
_NFT_TAKES = re.compile(r"[A-Za-z0-9_.@-]+")

_ON, _OFF = "1", "0"
_RA_UNLESS_FORWARDING, _RA_ALWAYS = "1", "2"


@dataclass(frozen=True, slots=True)
class Note:
    """What meshd has changed: all of it has to be put back."""

    ipv4: tuple[str, ...] = ()  # interfaces that did not forward
    ipv6: bool = False  # the host did not
    accept_ra: tuple[str, ...] = ()  # directories of conf/ where it was 1


def plan(note: Note, interfaces: Iterable[str], *, ipv4: bool, ipv6: bool) -> Note:
    """Return the note that adds what has to be switched on to what is.  Changes nothing."""
    names = dict.fromkeys(note.ipv4)
    if ipv4 and not _host_forwards_ipv4():
        for name in interfaces:
            if _NFT_TAKES.fullmatch(name) and _read(_ipv4(name)) == _OFF:
                names[name] = None
    accept_ra = dict.fromkeys(note.accept_ra)
    switched = note.ipv6 or (ipv6 and _read(_ipv6("all", "forwarding")) == _OFF)
    if switched:
        for directory in _ipv6_directories():
            if _read(_ipv6(directory, "accept_ra")) == _RA_UNLESS_FORWARDING:
                accept_ra[directory] = None
    return Note(tuple(names)[:INTERFACES_MAX], switched, tuple(accept_ra)[:INTERFACES_MAX])


def fence(note: Note) -> Fence:
    """Return where nothing but relayed datagrams may pass."""
    return Fence(() if _host_forwards_ipv4() else note.ipv4, note.ipv6)


def switch_on(note: Note) -> None:
    """Have the kernel forward, as noted.  Raise DeviceError."""
    for name in note.ipv4:
        _write(_ipv4(name), _ON)
    if note.ipv6:
        for directory in note.accept_ra:
            _write(_ipv6(directory, "accept_ra"), _RA_ALWAYS)
        _write(_ipv6("all", "forwarding"), _ON)


def put_back(note: Note) -> None:
    """Undo what is noted, where nobody else has changed it since.  Raise DeviceError."""
    if not _host_forwards_ipv4():
        for name in note.ipv4:
            _write(_ipv4(name), _OFF)
    if note.ipv6:
        _write(_ipv6("all", "forwarding"), _OFF)
        for directory in note.accept_ra:
            if _read(_ipv6(directory, "accept_ra")) == _RA_ALWAYS:
                _write(_ipv6(directory, "accept_ra"), _RA_UNLESS_FORWARDING)


def pack_note(note: Note) -> bytes:
    """Return a note as it is kept on disk."""
    return json.dumps({"kernel": _kernel_id(), **asdict(note)}).encode()


def unpack_note(stored: bytes | None) -> Note:
    """Return the note that is on disk, an empty one if there is none that is still good."""
    if stored is None:
        return Note()
    try:
        kept = json.loads(stored)
        if kept["kernel"] != _kernel_id():
            return Note()
        return Note(tuple(kept["ipv4"]), bool(kept["ipv6"]), tuple(kept["accept_ra"]))
    except (ValueError, KeyError, TypeError):
        # It cannot tell what was changed, and what nobody can tell is left as it is.
        return Note()


def _kernel_id() -> str:
    return f"{BOOT_ID.read_text().strip()} {NAMESPACE.stat().st_ino}"


def _host_forwards_ipv4() -> bool:
    return _read(_ipv4("all")) == _ON


def _ipv4(name: str) -> Path:
    return ROOT / "ipv4" / "conf" / name / "forwarding"


def _ipv6(name: str, key: str) -> Path:
    return ROOT / "ipv6" / "conf" / name / key


def _ipv6_directories() -> Iterator[str]:
    root = ROOT / "ipv6" / "conf"
    if root.is_dir():  # else a kernel without IPv6
        yield from sorted(path.name for path in root.iterdir() if path.name != "all")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:  # the interface, or IPv6, is not there
        return None


def _write(path: Path, value: str) -> None:
    if _read(path) == value:
        return
    try:
        path.write_text(value)
    except FileNotFoundError:
        return  # the interface has gone, and its value with it
    except OSError as exc:
        raise DeviceError(f"write {path}", exc.errno or errno.EIO) from exc
