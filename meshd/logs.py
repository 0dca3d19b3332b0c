"""The log: one line for each thing an operator cares about, on standard error.

On a terminal it is text; elsewhere one JSON object a line, for programs to collect:

    14:02:31.120 warning b is suspect  reason="no ack in 500 ms"
    {"at":"2026-05-01T14:02:31.120Z","level":"warning","logger":"meshd.daemon",
     "message":"b is suspect","reason":"no ack in 500 ms"}                          (one line)

What belongs to an event goes into fields, so that nobody has to parse messages:

    log.warning("%s is suspect", name, extra=fields(reason=reason))

Under systemd each line begins with its priority, which the journal takes off again: so
`journalctl -p warning` works with either format.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from meshd.values import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

_FIELDS = "meshd_fields"
# sd-daemon(3): the priority in angle brackets in front of a line.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def fields(**values: object) -> dict[str, object]:
    """Return what `extra` of a logging call must be for these fields to appear."""
    return {_FIELDS: values}


def configure(
    level: str, log_format: str | None = None, stream: TextIO | None = None
) -> logging.Handler:
    """Send meshd's log to a stream (standard error) from here on, and return its handler."""
    stream = sys.stderr if stream is None else stream
    text = stream.isatty() if log_format is None else log_format == "text"
    handler = logging.StreamHandler(stream)
    formatter = TextFormatter() if text else JsonFormatter()
    handler.setFormatter(_JournalFormatter(formatter) if _is_journal(stream) else formatter)
    root = logging.getLogger("meshd")
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False
    return handler


class TextFormatter(logging.Formatter):
    """One line of text a record, in local time; a traceback follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).astimezone()
        parts = [f"{at:%H:%M:%S}.{record.msecs:03.0f} {record.levelname.lower():7} "]
        parts.append(printable(record.getMessage()))
        extra = [f"{key}={_quoted(value)}" for key, value in _fields_of(record).items()]
        if extra:
            parts.append("  " + " ".join(extra))
        if record.exc_info:
            parts.append("\n" + self.formatException(record.exc_info))
        return "".join(parts)


class JsonFormatter(logging.Formatter):
    """One JSON object a record, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        document: dict[str, object] = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in _fields_of(record).items():
            document.setdefault(key, value)
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, separators=(",", ":"), default=str, ensure_ascii=False)


class _JournalFormatter(logging.Formatter):
    """Another formatter's lines, each with its priority in front."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines."""
        prefix = f"<{_PRIORITIES.get(record.levelname.lower(), 6)}>"
        return "\n".join(prefix + line for line in self._inner.format(record).split("\n"))


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    values: Mapping[str, object] = getattr(record, _FIELDS, {})
    return values


def _quoted(value: object) -> str:
    text = str(value)
    plain = text and text.isprintable() and not any(char in text for char in ' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)


def _is_journal(stream: TextIO) -> bool:
    """Whether a stream goes straight to the journal: systemd.exec(5), JOURNAL_STREAM."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
