"""Every way in that takes bytes from outside, by name, and the fuzzer that is pointed at each.

Rule 1: any bytes give a value, or `BadPacket` with a short constant reason; nothing else.

Rule 2: where there is an encoder, what was decoded is encoded into bytes that decode to the same.

A decoder is registered in one line, beside those of its kind in a `decoders_*` module:

    decoder("renewal", decode_renewal_untrusted, lambda: [encode_renewal(RENEWAL)])

A target that checks a signature first would turn away all that a fuzzer makes.  Where there is a
`sign`, half of the inputs are signed again after they were changed, as a member gone bad would.
"""

from __future__ import annotations

import functools
import random
import time
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from fuzz.mutate import Mutator, seed_of
from meshd.errors import BadPacket
from meshd.keys import SIGNATURE_BYTES
from meshd.trust.signed import sign

if TYPE_CHECKING:
    from collections.abc import Callable

REASONS_MAX = 64  # of one decoder: they are metric labels
_REASON_CHARS_MAX = 80


class Target(NamedTuple):
    """One way in."""

    decode: Callable[[bytes], object]
    seeds: list[bytes]
    head: int = 0  # bytes before the msgpack value
    sign: Callable[[bytes], bytes] | None = None  # makes a changed seed pass for genuine
    encode: Callable[[object], bytes] | None = None
    reasons_max: int = REASONS_MAX


TARGETS: dict[str, Callable[[], Target]] = {}


def target(name):
    """Register a function that makes a target."""

    def register(make):
        assert name not in TARGETS, f"{name} is there already"
        TARGETS[name] = functools.cache(make)
        return make

    return register


def decoder(name, decode, seeds, **more):
    """Register a function that decodes; `seeds` makes valid bytes for it."""
    target(name)(lambda: Target(decode, seeds(), **more))


def statement(name, decode, seeds, *, kind, key, mesh):
    """Register a function that opens a signed statement, whose signer is `key`."""
    decoder(name, decode, seeds, head=SIGNATURE_BYTES, sign=signer(kind, key, mesh))


def signer(kind, key, mesh):
    """Return what signs the body of a blob again."""
    return lambda blob: sign(kind, mesh, key, blob[SIGNATURE_BYTES:])


@dataclass
class Result:
    """What came of fuzzing one target."""

    inputs: int = 0
    accepted: int = 0
    reasons: set = field(default_factory=set)
    seconds: float = 0.0
    wrong: str = ""
    data: bytes = b""

    @property
    def rate(self):
        return self.inputs / max(self.seconds, 1e-9)


def fuzz(name, *, inputs, seed, seconds=float("inf")):
    """Hand mutated bytes to a target until one breaks a rule."""
    target = TARGETS[name]()
    rng = random.Random(f"{name} {seed}")
    mutator = Mutator(rng, [seed_of(data, head=target.head) for data in target.seeds])
    result = Result()
    begin, until = time.process_time(), time.monotonic() + seconds
    while result.inputs < inputs:
        data = mutator.mutate(mutator.seed())
        if target.sign is not None and rng.random() < 0.5:
            data = target.sign(data)
        result.inputs += 1
        try:
            judge(target, data, result)
        except Exception:  # any error at all is what is searched for
            result.wrong, result.data = traceback.format_exc(), data
            break
        if result.inputs % 4096 == 0 and time.monotonic() > until:
            break
    result.seconds = time.process_time() - begin
    return result


def judge(target, data, result):
    """Check the rules for one input."""
    try:
        value = target.decode(data)
    except BadPacket as exc:
        reason = exc.reason
    else:
        result.accepted += 1
        _check_again(target, value)
        return
    result.reasons.add(reason)
    assert len(reason) <= _REASON_CHARS_MAX, reason
    assert len(result.reasons) <= target.reasons_max, sorted(result.reasons)


def _check_again(target, value):
    """Check rule 2."""
    if target.encode is not None:
        again = target.decode(target.encode(value))
        assert again == value, f"{again} is not {value}"
