"""Bytes that are nearly right: what a fuzzer makes of valid ones.

Three layers, because each reaches code that the others do not:

- bytes: bits flipped, runs overwritten, cut, repeated, two messages spliced, lengths at every limit
- msgpack: fields set, dropped, swapped, borrowed from another message, given a wrong type, a huge
  number, a deep nest; items added and repeated; what is inside a signed blob treated likewise
- encoding: the same key twice, integers wider than they need to be, heads that promise more than
  follows

Everything is drawn from one `Random`, so that a seed is a sequence of inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import msgpack

from meshd.codec import unpack_untrusted
from meshd.errors import BadPacket
from meshd.keys import SIGNATURE_BYTES

BYTES_MAX = 65535  # what one UDP datagram can hold

UINT64_MAX = 2**64 - 1
_INTS = [
    *(0, 1, 2, 3, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, -1, -33, -(2**31), -(2**63)),
    *(power + by for power in (2**16, 2**32, 2**48, 2**53, 2**63) for by in (-1, 0, 1)),
    *(UINT64_MAX - 1, UINT64_MAX),
]
_BLOBS = [bytes(n) for n in (0, 1, 4, 7, 8, 16, 24, 31, 32, 33, 63, 64, 65, 192, 193, 512, 513)]
_DEEP: object = 0
for _ in range(100):
    _DEEP = [_DEEP]
_ODD = [
    *_INTS,
    *_BLOBS,
    *(None, False, True, 0.5, -1.0, float("nan"), float("inf"), "", "text", "\0", "ä" * 200),
    *([], {}, [[]], [{}], {0: {}}, [0] * 33, [[0, b""]] * 33, [[0, bytes(65)]] * 32, _DEEP),
    *(list(range(1000)), dict.fromkeys(range(300), 0)),
    *(msgpack.ExtType(1, b""), msgpack.ExtType(127, bytes(40)), msgpack.Timestamp(0)),
]
_KEYS = [*range(17), 63, 64, 65, 127, -1, 2**32, UINT64_MAX, None, False, True, 1.0, "1", b"\1"]
# Values that no encoder makes: nests deeper than any stack, heads that promise gigabytes, a byte
# that msgpack never uses, text that is no UTF-8, maps whose keys cannot be keys.
_RAW = [
    b"\x91" * 1100 + b"\xc0",
    b"\x81\x00" * 500 + b"\xc0",
    b"\x81" * 1100 + b"\xc0" * 1101,
    b"\xc1",
    b"\xc6\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\xd6\xff\xff\xff\xff\xff",
    b"\xa1\xff",
    b"\x81\x80\x00",
    b"\x81\x91\x80\x00",
    b"",
]
_TRUNCATED_HEADS = [b"\xcd", b"\xce\0", b"\xcf\0\0\0", b"\xc4", b"\xc5\xff", b"\xdc", b"\xde"]


class Seed(NamedTuple):
    """Valid bytes to begin with, and what they say."""

    data: bytes
    head: int  # bytes in front of the msgpack value
    tree: object  # the value; None if there is none


def seed_of(data: bytes, *, head: int = 0) -> Seed:
    """Return a seed."""
    try:
        return Seed(data, head, unpack_untrusted(data[head:]))
    except BadPacket:
        return Seed(data, head, None)


class Mutator:
    """Makes inputs of seeds."""

    def __init__(self, rng, seeds):
        self._rng = rng
        self._random = rng.random
        self._seeds = list(seeds)
        self._layers = [
            *(self._flip, self._flip, self._overwrite, self._cut, self._lengthen, self._move),
            *(self._splice, self._noise),
        ]
        self._changes = [
            *(self._set, self._drop, self._add, self._nest, self._nest, self._nest),
            *(self._swap, self._borrow),
        ]

    def seed(self):
        """Choose a seed."""
        return self._one_of(self._seeds)

    def mutate(self, seed):
        """Return bytes that resemble a seed's."""
        if seed.tree is not None and self._random() < 0.6:
            data = self._pack(seed, self.change(seed.tree))
        else:
            data = self._one_of(self._layers)(seed.data)
        while self._random() < 0.1:
            data = self._one_of(self._layers)(data)
        return data[:BYTES_MAX]

    def change(self, tree):
        """Return another tree, with a few changes."""
        for _ in range(1 + self._below(3)):
            tree = self._nested(tree)
        return tree

    # Bytes

    def _flip(self, data):
        if not data:
            return b"\0"
        changed = bytearray(data)
        for _ in range(1 + self._below(4)):
            changed[self._below(len(changed))] ^= 1 << self._below(8)
        return bytes(changed)

    def _overwrite(self, data):
        at = self._below(len(data) + 1)
        run = self._one_of((b"\0", b"\xff", b"\x7f", b"\xc0", b"\x93")) * (1 + self._below(9))
        return data[:at] + run + data[at + len(run) :]

    def _cut(self, data):
        return data[: self._below(len(data) + 1)]

    def _lengthen(self, data):
        length = self._one_of((len(data) + 1, 1199, 1200, 1201, 1231, 1232, 1233, 4097, BYTES_MAX))
        return data.ljust(length, self._one_of((b"\0", b"\xc0", b"\xff")))

    def _move(self, data):
        start, end, to = (self._below(len(data) + 1) for _ in range(3))
        part = data[start:end]
        if self._random() < 0.5:
            data = data[:start] + data[end:]
        return data[:to] + part + data[to:]

    def _splice(self, data):
        other = self.seed().data
        return data[: self._below(len(data) + 1)] + other[self._below(len(other) + 1) :]

    def _noise(self, data):
        head = data[: self._below(4)]
        return head + self._rng.randbytes(self._below(self._one_of((4, 40, 400))))

    # Msgpack

    def _nested(self, value):
        """Change something, somewhere in a value."""
        if isinstance(value, dict) and value:
            changed = dict(value)
            self._one_of(self._changes)(changed)
            return changed
        if isinstance(value, list | tuple) and value:
            return self._nested_list(list(value))
        if isinstance(value, bytes) and value:
            return self._nested_bytes(value)
        if isinstance(value, int) and not isinstance(value, bool) and self._random() < 0.7:
            by = self._one_of((-1, 1, 2, 256, 2**32, -(2**32)))
            return min(max(value + by, -(2**63)), UINT64_MAX)
        return self._one_of(_ODD)

    def _nested_list(self, values):
        at = self._below(len(values))
        match self._below(6):
            case 0:
                del values[at]
            case 1:
                values.insert(at, values[self._below(len(values))])
            case 2:
                values.insert(at, self._one_of(_ODD))
            case 3:
                values.reverse()
            case _:
                values[at] = self._nested(values[at])
        return values

    def _nested_bytes(self, value):
        if len(value) > SIGNATURE_BYTES and self._random() < 0.5:
            inner = seed_of(value, head=SIGNATURE_BYTES)
            if isinstance(inner.tree, dict):
                return value[:SIGNATURE_BYTES] + _packed(self._nested(inner.tree))
        match self._below(4):
            case 0:
                return self._one_of(_BLOBS)
            case 1:
                return self._cut(value)
            case 2:
                return value + value[: self._below(9)]
            case _:
                return self._flip(value)

    def _set(self, fields):
        fields[self._one_of(list(fields))] = self._one_of(_ODD)

    def _drop(self, fields):
        del fields[self._one_of(list(fields))]

    def _add(self, fields):
        fields[self._one_of(_KEYS)] = self._one_of(_ODD)

    def _nest(self, fields):
        key = self._one_of(list(fields))
        fields[key] = self._nested(fields[key])

    def _swap(self, fields):
        one, other = self._one_of(list(fields)), self._one_of(list(fields))
        fields[one], fields[other] = fields[other], fields[one]

    def _borrow(self, fields):
        tree = self.seed().tree
        if isinstance(tree, dict) and tree:
            key = self._one_of(list(tree))
            fields[key] = tree[key]

    # Encoding

    def _pack(self, seed, tree):
        head = seed.data[: seed.head]
        if seed.head and self._random() < 0.1:
            at = self._below(seed.head)
            head = head[:at] + bytes([self._below(10)]) + head[at + 1 :]
        if isinstance(tree, dict) and self._random() < 0.1:
            return head + self._odd_map(tree)
        return head + _packed(tree)

    def _odd_map(self, fields):
        """Encode a map as no encoder does."""
        pairs = [[_packed(key), _packed(value)] for key, value in fields.items()]
        if not pairs:
            return self._one_of(_RAW)
        pair = self._one_of(pairs)
        match self._below(4):
            case 0:
                pairs.append([pair[0], _packed(self._one_of(_ODD))])
            case 1:
                pair[1] = self._one_of(_RAW)
            case 2:
                pair[self._below(2)] = self._one_of(_TRUNCATED_HEADS)
            case _:
                pair[0] = self._wide(pair[0])
                pair[1] = self._wide(pair[1])
        count = len(pairs) + self._one_of((0, 0, 0, 1, -1))
        head = self._one_of(
            (b"\xde" + count.to_bytes(2, "big"), b"\xdf" + count.to_bytes(4, "big"))
        )
        return head + b"".join(part for pair in pairs for part in pair)

    def _wide(self, packed):
        if len(packed) == 1 and packed[0] < 0x80:
            return self._one_of((b"\xcc", b"\xcd\0", b"\xce\0\0\0", b"\xd3" + bytes(7))) + packed
        return packed

    def _below(self, count):
        return int(self._random() * count)

    def _one_of(self, things):
        return things[int(self._random() * len(things))]


def _packed(tree):
    return msgpack.packb(tree)
