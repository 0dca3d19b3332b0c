"""One TCP connection: a frame there, a frame back, and the kernel's patience with lost segments.

    client                          server
      │ SYN      again after 1, 3 s    │   the kernel answers, even if the daemon is stopped
      │───────────────────────────────▶│   ... unless nothing listens: RST, and that was it
      │◀─────────────────────── SYN-ACK│
      │ frame    again after 0.2, 0.6 s│
      │───────────────────────────────▶│   the daemon reads it when it can
      │◀───────────────────────── frame│
      ▼ within the timeout, or never

Segments travel the same links as datagrams; only that blocked UDP does not block them.
"""

from __future__ import annotations

from functools import partial

from sim.network import IP_TCP_BYTES

_SYN_TRIES_AT = (0.0, 1.0, 3.0, 7.0)
_DATA_TRIES_AT = (0.0, 0.2, 0.6, 1.4, 3.0, 6.2)
_LENGTH_BYTES = 2
_OVERHEAD_SEGMENTS = 2  # that acknowledge and close, each way


class Stream:
    """The connection for one `StreamProbe`."""

    def __init__(self, cluster, client, probe):
        self._cluster = cluster
        self._client = client
        self._run = client.run
        self._server = cluster.hosts[cluster.names[probe.target]]
        self._server_run = 0
        self._frame = probe.datagram
        self._deadline = cluster.now + probe.timeout
        self._stage = 0  # how far it has come, so that what arrives twice counts once
        self._try(0, _SYN_TRIES_AT, self._connect)

    # Client

    def _try(self, stage, tries_at, send):
        """Send a segment again and again until it has been of use, or time is up."""
        for span in tries_at:
            if self._cluster.now + span <= self._deadline:
                self._cluster.at(span, self._send_at, stage, send)

    def _send_at(self, stage, send):
        if self._stage == stage and self._cluster.now <= self._deadline:
            send()

    def _segment(self, source, target, payload, arrived):
        """Send one segment, and see it arrive if it does."""
        source.sent.add(IP_TCP_BYTES + payload)
        for delay in self._cluster.network.deliveries(source.name, target.name, udp=False)[:1]:
            self._cluster.at(delay, self._arrive, source, target, arrived)

    def _arrive(self, source, target, arrived):
        if target.up:
            target.tunnelled[source.name] += 1
            arrived()

    def _connect(self):
        if self._client.run == self._run and self._client.running:
            self._segment(self._client, self._server, 0, self._syn_arrived)

    def _syn_arrived(self):
        answer = self._connected if self._server.running else self._refused
        self._segment(self._server, self._client, 0, answer)

    def _refused(self):
        self._deadline = self._cluster.now - 1.0

    def _connected(self):
        if self._stage == 0:
            self._stage = 1
            for _ in range(_OVERHEAD_SEGMENTS):
                self._client.sent.add(IP_TCP_BYTES)
            self._try(1, _DATA_TRIES_AT, self._ask)

    def _ask(self):
        size = _LENGTH_BYTES + len(self._frame)
        self._segment(self._client, self._server, size, self._asked)

    # Server

    def _asked(self):
        if self._stage == 1 and self._server.running:
            self._stage = 2
            self._server_run = self._server.run
            self._cluster.take(self._server, len(self._frame), self._answer)

    def _answer(self):
        cluster, server = self._cluster, self._server
        answer = server.node.answer_stream(
            self._frame, self._client.key.id, cluster.now, cluster.wall(server)
        )
        if answer is not None:
            for _ in range(_OVERHEAD_SEGMENTS):
                server.sent.add(IP_TCP_BYTES)
            self._try(2, _DATA_TRIES_AT, partial(self._send_back, answer))

    def _send_back(self, answer):
        size = _LENGTH_BYTES + len(answer)
        self._segment(self._server, self._client, size, partial(self._answered, answer))

    def _answered(self, answer):
        if self._stage == 2 and self._client.running and self._client.run == self._run:
            self._stage = 3
            self._cluster.take(self._client, len(answer), partial(self._read, answer))

    def _read(self, answer):
        # A client that stood still finds that its time is up before it finds the answer.
        cluster = self._cluster
        if cluster.now <= self._deadline:
            cluster.receive(self._client, self._server, answer)
