"""A new root for the mesh, or a new bootstrap key, as requests see it.

| request                                  | answer                                               |
| ---------------------------------------- | ---------------------------------------------------- |
| `POST /v1/seal {secret,sure}`            | `meshd.seal/1`                                       |
| `POST /v1/keys/rotate-mesh {…,sure}`     | `meshd.rotate-mesh/1`; `overlap` is in seconds       |
| `POST /v1/keys/rotate-bootstrap {sure}`  | `meshd.rotate-bootstrap/1`                           |
| `POST /v1/keys/export-mesh`              | `meshd.mesh-key/1`: the key itself, as text          |
| `POST /v1/keys/forget-mesh {root}`       | `meshd.forget-mesh/1`: it is not on this disk then   |

Without `sure` nothing is done, and the answer says what would be.  With it, all is on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from meshd.control.fields import Fields
from meshd.control.views import rfc3339

if TYPE_CHECKING:
    from meshd.control.routes import Document, Request, Routes
    from meshd.keys import MeshId, NodeId

OVERLAP_MAX = 366 * 86400
OVERLAP_DEFAULT = 30 * 86400
SECRET_TEXT_MAX = 2048  # above what a secret may have


@dataclass(frozen=True, slots=True)
class NewRootAnswer:
    """A new root that is, or would be, made."""

    done: bool
    root: MeshId | None  # the new one, when it is done
    members: tuple[tuple[NodeId, str, str], ...]  # those taken along: id, name, state
    overlap_until: float | None = None


@dataclass(frozen=True, slots=True)
class NewBootstrapAnswer:
    """A new bootstrap key that is, or would be, made."""

    done: bool
    invites: int  # of this node, that become void
    away: tuple[str, ...]  # members that get it when they are back


class SealingController(Protocol):
    """The part of the daemon that these requests need."""

    async def seal(self, secret: str | None, *, sure: bool) -> NewRootAnswer:
        """Move an open mesh to a fresh mesh key and bootstrap key."""

    async def rotate_mesh_key(
        self, overlap: int, mesh_key: str | None, *, sure: bool
    ) -> NewRootAnswer:
        """Replace the mesh key: that on this node's disk, or the one given."""

    def mesh_key(self) -> tuple[MeshId, str]:
        """Return the mesh key that this node holds, and whose it is."""

    def forget_mesh_key(self, root: str) -> None:
        """Delete the mesh key from this node's disk."""

    async def rotate_bootstrap_key(self, *, sure: bool) -> NewBootstrapAnswer:
        """Replace the bootstrap key."""


def sealing_routes(controller: SealingController) -> Routes:
    """Return the handlers of these requests."""

    async def seal(request: Request) -> Document:
        fields = Fields(request.body)
        secret = fields.text("secret", length_max=SECRET_TEXT_MAX)
        sure = fields.flag("sure")
        fields.done()
        answer = await controller.seal(secret, sure=sure)
        return {"schema": "meshd.seal/1", "sealed": answer.done, **_root(answer)}

    async def rotate_mesh(request: Request) -> Document:
        fields = Fields(request.body)
        overlap = fields.whole("overlap", minimum=0, maximum=OVERLAP_MAX, default=OVERLAP_DEFAULT)
        mesh_key, sure = fields.text("mesh_key"), fields.flag("sure")
        fields.done()
        answer = await controller.rotate_mesh_key(overlap, mesh_key, sure=sure)
        until = None if answer.overlap_until is None else rfc3339(answer.overlap_until)
        return {
            "schema": "meshd.rotate-mesh/1",
            "rotated": answer.done,
            "overlap_until": until,
            **_root(answer),
        }

    async def rotate_bootstrap(request: Request) -> Document:
        fields = Fields(request.body)
        sure = fields.flag("sure")
        fields.done()
        answer = await controller.rotate_bootstrap_key(sure=sure)
        return {
            "schema": "meshd.rotate-bootstrap/1",
            "rotated": answer.done,
            "void_invites": answer.invites,
            "away": list(answer.away),
        }

    async def export_mesh(request: Request) -> Document:
        Fields(request.body).done()
        root, text = controller.mesh_key()
        return {"schema": "meshd.mesh-key/1", "root": str(root), "mesh_key": text}

    async def forget_mesh(request: Request) -> Document:
        fields = Fields(request.body)
        root = fields.needed_text("root")
        fields.done()
        controller.forget_mesh_key(root)
        return {"schema": "meshd.forget-mesh/1", "root": root}

    return {
        ("POST", "/v1/keys/export-mesh"): export_mesh,
        ("POST", "/v1/keys/forget-mesh"): forget_mesh,
        ("POST", "/v1/seal"): seal,
        ("POST", "/v1/keys/rotate-mesh"): rotate_mesh,
        ("POST", "/v1/keys/rotate-bootstrap"): rotate_bootstrap,
    }


def _root(answer: NewRootAnswer) -> Document:
    return {
        "root": None if answer.root is None else str(answer.root),
        "members": [
            {"id": str(node), "name": name, "state": state} for node, name, state in answer.members
        ],
    }
