"""What passes between the HTTP server and those who answer requests.

A handler gets a `Request` and returns either a document (a JSON value), a `Reply` that also says
what to do once the document has been sent, or a `Lines` of documents, sent one a line as they
come.  It refuses by raising `ApiError`; anything else it raises is a bug of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

from meshd.errors import MeshdError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Document: TypeAlias = dict[str, Json]


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body parsed.  Everything in it comes from outside."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """A document, and what happens when its last byte is on its way."""

    document: Document
    afterwards: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Lines:
    """Documents that are sent as they come.  The server closes the generator."""

    documents: AsyncGenerator[Document, None]


class ApiError(MeshdError):
    """A request cannot be granted.  No state has changed."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    def document(self) -> Document:
        """Return the error as it goes over the wire."""
        return {"error": {"code": self.code, "message": self.message}}


Handler: TypeAlias = "Callable[[Request], Awaitable[Reply | Lines | Document]]"
Routes: TypeAlias = "Mapping[tuple[str, str], Handler]"


def bad_request(message: str) -> ApiError:
    """Return the refusal of a request that cannot be meant."""
    return ApiError(HTTPStatus.BAD_REQUEST, "bad-request", message)
