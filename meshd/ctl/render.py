"""Documents as text for people.  Pure: what depends on the terminal comes in as a `Screen`.

A table is as wide as its contents where there is room.  On a narrow terminal the gaps shrink
first, then optional columns go, then the widest texts are cut, and are seen to be cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.values import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.ctl.client import Document

CELL_WIDTH_MIN = 8
_HEAD_SHOWN = 16  # hexadecimal digits: what `audit verify --noted` asks for at least

_COLOURS = {"green": 32, "yellow": 33, "red": 31, "dim": 2, "bold": 1}
_OF_STATE = {"alive": "green", "suspect": "yellow", "dead": "red", "left": "dim"}
_OF_LEVEL = {"info": "dim", "warning": "yellow", "error": "red"}
_EVENT_FIELDS = frozenset({"schema", "at", "event", "member", "message"})


@dataclass(frozen=True, slots=True)
class Screen:
    """What is written to."""

    width: int | None = None  # None: not a terminal, lines may be of any length
    colour: bool = False

    def paint(self, text: str, colour: str) -> str:
        """Return a text in a colour, where there are colours."""
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.colour else text


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    cut: bool = False  # its texts may be cut
    optional: bool = False  # it may be left out
    colours: Callable[[str], str | None] = lambda _: None


def status_text(document: Document, screen: Screen) -> str:
    """Return self, a line a member, then health findings."""
    me, mesh = document["self"], document["mesh"]
    counts = mesh["members"]
    total = sum(counts.values())
    shown = ", ".join(f"{counts[state]} {state}" for state in _OF_STATE if counts.get(state))
    uptime = duration_text(me["uptime_s"])
    lines = [
        "  ".join(
            [
                screen.paint(me["name"], "bold"),
                *[address for address in (me["ipv4"], me["ipv6"]) if address],
            ]
        ),
        f"{me['interface']}, {me['backend']} WireGuard, port {me['listen_port']}, up {uptime}"
        + ("" if me["ready"] else screen.paint(", not ready", "yellow")),
        f"mesh {mesh['name']}: {total} member{'s' if total != 1 else ''}, {shown}",
    ]
    if me.get("audit_head"):
        number, _, digest = me["audit_head"].partition(":")
        lines.append(f"audit log: {number}:{digest[:_HEAD_SHOWN]}")
    if document["members"]:
        lines += ["", *table(_MEMBER_COLUMNS, [_member(m) for m in document["members"]], screen)]
    if document["health"]:
        lines.append("")
    for finding in document["health"]:
        level = screen.paint(finding["level"], _OF_LEVEL.get(finding["level"], "bold"))
        lines.append(f"{level}: {printable(finding['message'])} [{finding['code']}]")
    return "\n".join(lines)


_MEMBER_COLUMNS = (
    Column("NAME", cut=True),
    Column("ADDRESS"),
    Column("STATE", colours=_OF_STATE.get),
    Column("PATH", cut=True),
    Column("RTT"),
    Column("SHAKE"),
    Column("PQ", optional=True),
    Column("RX/TX", optional=True),
)


def _member(member: Document) -> list[str]:
    return [
        member["name"],
        member["ipv4"] or member["ipv6"],
        member["state"],
        path_text(member),
        milliseconds_text(member["rtt_ms"] if member["path"] else None),  # of the path, that is
        duration_text(member["last_handshake_s"]),
        _post_quantum(member),
        f"{bytes_text(member['rx_bytes'])}/{bytes_text(member['tx_bytes'])}",
    ]


def _post_quantum(member: Document) -> str:
    if member["post_quantum"]:
        return "yes"
    return "-" if member["psk_age_s"] is None else "soon"  # with its next handshake


def peers_text(document: Document, screen: Screen) -> str:
    """Return a line a peer."""
    columns = (
        Column("MEMBER", cut=True),
        Column("ENDPOINT", cut=True),
        Column("ALLOWED IPS", cut=True),
        Column("SHAKE"),
        Column("RX"),
        Column("TX"),
    )
    rows = [
        [
            peer["member"] or f"? {peer['public_key'][:10]}…",
            peer["endpoint"] or "-",
            " ".join(peer["allowed_ips"]) or "-",
            duration_text(peer["last_handshake_s"]),
            bytes_text(peer["rx_bytes"]),
            bytes_text(peer["tx_bytes"]),
        ]
        for peer in document["peers"]
    ]
    return "\n".join(table(columns, rows, screen)) if rows else "no peers"


def event_text(document: Document) -> str:
    """Return one line."""
    extra = [
        f"{key}={_value_text(value)}"
        for key, value in document.items()
        if key not in _EVENT_FIELDS and value is not None
    ]
    parts = [document["at"], document["event"], document["member"], document["message"], *extra]
    return printable("  ".join(str(part) for part in parts if part))


def _value_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def ping_text(document: Document) -> str:
    """Return one line for one ping."""
    name, number = document["member"], document["number"]
    if document["rtt_ms"] is None:
        return f"{name}: no answer to {number}"
    return (
        f"{name}: answer {number} in {milliseconds_text(document['rtt_ms'])}, {path_text(document)}"
    )


def ping_summary_text(document: Document) -> str:
    """Return the line that ends a ping."""
    line = f"{document['member']}: {document['sent']} sent, {document['answered']} answered"
    if not document["answered"]:
        return line
    spans = (document[f"rtt_{which}_ms"] for which in ("min", "mean", "max"))
    return f"{line}, min/mean/max {'/'.join(milliseconds_text(span) for span in spans)}"


def path_text(document: Document) -> str:
    """Return how packets flow: `direct ip:port`, `relayed via NAME`, or `-`; `(tcp)` if so."""
    if document.get("transport") == "tcp":
        over = "direct" if document["path"] == "direct" else f"relayed via {document['relay']}"
        return f"{over} (tcp)"
    if document["path"] == "direct":
        return f"direct {document['endpoint'] or ''}".rstrip()
    if document["path"] == "relayed":
        return f"relayed via {document['relay'] or '?'}"
    return "-"


def milliseconds_text(span: float | None) -> str:
    """Return a round-trip time in three digits or so."""
    if span is None:
        return "-"
    if span >= 1000:
        return f"{span / 1000:.1f}s"
    return f"{span:.0f}ms" if span >= 100 else f"{span:.1f}ms"


def duration_text(span: float | None) -> str:
    """Return a span in its largest unit."""
    if span is None:
        return "-"
    for seconds, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if span >= 2 * seconds:
            return f"{span / seconds:.0f}{unit}"
    return f"{span:.0f}s"


def bytes_text(count: int) -> str:
    """Return an amount of bytes in three digits or so, in powers of 1024."""
    amount = float(count)
    for unit in ("", "K", "M", "G"):
        if amount < 1000:
            return f"{amount:.0f}{unit}" if amount >= 10 or not unit else f"{amount:.1f}{unit}"
        amount /= 1024
    return f"{amount:.1f}T"


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], screen: Screen) -> list[str]:
    """Return a title line and a line for each row."""
    kept = list(range(len(columns)))
    grid = [[column.title for column in columns], *([printable(c) for c in row] for row in rows)]
    widths = [max(len(row[index]) for row in grid) for index in kept]
    gap = 2
    if screen.width is not None:
        gap, kept = _fit(columns, widths, kept, screen.width)
    lines = []
    for number, row in enumerate(grid):
        cells = []
        for index in kept:
            text = _cut(row[index], widths[index])
            padding = " " * (widths[index] - len(text))
            colour = "dim" if number == 0 else columns[index].colours(text)
            cells.append((screen.paint(text, colour) if colour else text) + padding)
        lines.append((" " * gap).join(cells).rstrip())
    return lines


def _fit(
    columns: Sequence[Column], widths: list[int], kept: list[int], width: int
) -> tuple[int, list[int]]:
    """Return the gap and the columns that fit, and narrow `widths` where texts are to be cut."""

    def excess(gap: int) -> int:
        return sum(widths[index] for index in kept) + gap * (len(kept) - 1) - width

    if excess(2) <= 0:
        return 2, kept
    if excess(1) > 0:
        kept = [index for index in kept if not columns[index].optional]
    while (over := excess(1)) > 0:
        wide = [i for i in kept if columns[i].cut and widths[i] > CELL_WIDTH_MIN]
        if not wide:
            break
        widest = max(wide, key=lambda index: widths[index])
        widths[widest] -= min(over, widths[widest] - CELL_WIDTH_MIN, max(1, over // len(wide)))
    return 1, kept


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
