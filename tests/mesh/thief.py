"""What somebody can send who has the bootstrap key and nothing else that is of use."""

import random
import time

from meshd.bootstrap.messages import PROLOGUE, ByInvite, encode_request
from meshd.bootstrap.noise import Initiator
from meshd.keys import InviteKey, NodeKey
from meshd.trust.invite import Invite, sign_invite
from meshd.underlay import DatagramType, header

REQUEST_BYTES = 1200


def requests(mesh, bootstrap_key, count, *, seed=1):
    """Return requests that open and are signed, by a node that nobody has invited."""
    rng = random.Random(seed)
    key, invite_key = NodeKey(rng.randbytes(32)), InviteKey(rng.randbytes(32))
    invite = Invite(id=invite_key.id, issuer=key.id, expires_at=int(time.time()) + 3600)
    introduction = ByInvite("thief", sign_invite(invite, key, mesh), invite_key)
    return [_request(introduction, key, mesh, bootstrap_key, rng) for _ in range(count)]


def _request(introduction, key, mesh, bootstrap_key, rng):
    handshake = Initiator(psk=bootstrap_key, prologue=PROLOGUE, ephemeral=rng.randbytes(32))
    payload = encode_request(
        introduction, key=key, mesh=mesh, binding=handshake.binding, wall=time.time()
    )
    return header(DatagramType.BOOTSTRAP_REQUEST) + handshake.write_request(payload)


def junk(kind, count, *, size=REQUEST_BYTES, seed=1):
    """Return datagrams that look like ours as long as nobody opens them."""
    rng = random.Random(seed)
    head = header(kind)
    return [head + rng.randbytes(size - len(head)) for _ in range(count)]
