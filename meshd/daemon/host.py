"""What a daemon opens on its machine, and how much of it goes when a start fails.

    control socket ─▶ port free? ─▶ device ─▶ sockets ─▶ rules

Rule 1: what may be refused without a trace comes first.

Rule 2: a start that fails undoes what it has made.  It also undoes what it has found with this
        node's own key on it, as long as no mesh has let the node in: that was left by a run which
        was killed before it had come any further.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.addresses import overlay_prefix
from meshd.control.socket import ControlSocket
from meshd.daemon.carrier import open_host
from meshd.net import mux as one_port
from meshd.net.carrier import OwnPort
from meshd.net.mux import PortMux
from meshd.net.overlay import Overlay
from meshd.net.rtnetlink import RouteNetlink
from meshd.net.stream import Streams
from meshd.net.underlay import Underlay, check_port_free
from meshd.values import PORT_MAX
from meshd.wg.backend import delete_device, open_device

if TYPE_CHECKING:
    from contextlib import ExitStack

    from meshd.config import Config
    from meshd.daemon.startup import Start
    from meshd.wg.types import Device

# WireGuard's and meshd's datagrams bear it, so that policy routing can keep both out of a tunnel.
# "me"; wg-quick uses its port number, Tailscale the bits 0xff0000.
FWMARK = 0x6D65


class Host:
    """Open handles, sockets and rules.  `opened` is told how to undo them."""

    def __init__(self, config: Config, start: Start, opened: ExitStack) -> None:
        """Raise StartError or DeviceError."""
        interface = config.interface
        self.interface = interface
        self._port = config.port
        identity = start.identity
        self.control = ControlSocket.listen(config.socket_path)
        opened.callback(self.control.close)
        self.links = RouteNetlink((overlay_prefix(identity.mesh), identity.ipv4_prefix))
        opened.callback(self.links.close)
        was_there = self.links.observe(interface) is not None
        if not was_there:
            check_port_free(config.port)
        keys = start.memory.keys
        self.device: Device = open_device(
            interface,
            backend=config.backend,
            private_key=identity.wireguard_key,
            former=None if keys is None else keys.former,
        )
        opened.callback(self.device.close)
        ours = not was_there
        if was_there:
            found = self.device.observe()
            if found.listen_port != config.port:
                check_port_free(config.port)
            ours = not start.remembered and found.private_key == identity.wireguard_key
        if ours:
            opened.callback(self.remove_device)
        shared = one_port.nft_available()
        self.underlay = _open_underlay(config.port, shared=shared)
        opened.callback(self.underlay.close)
        self.mux: PortMux | None = None
        if shared:
            self.mux = PortMux(interface, config.port, self.underlay.port, FWMARK)
            one_port.apply(self.mux)
            if ours:
                opened.callback(one_port.remove, interface)
        self.carrier = open_host(config, self.own_port, fwmark=FWMARK)
        if self.carrier is not None:
            opened.callback(self.carrier.close)
        self.overlay = Overlay(identity.ipv6, interface)
        opened.callback(self.overlay.close)
        self.streams = Streams(identity.ipv6, interface)
        opened.callback(self.streams.close)

    @property
    def control_port(self) -> int:
        """The port others reach meshd at, where it is not WireGuard's; else 0."""
        return 0 if self.mux is not None else self.underlay.port

    @property
    def own_port(self) -> OwnPort:
        """The ports that WireGuard and meshd are reached at from this very host."""
        return OwnPort(self._port, self.control_port or self._port)

    def rebind(self) -> None:
        """Have what is bound to the interface follow its name to a new one.  Raise DeviceError."""
        self.overlay.rebind()
        self.streams.rebind()

    def remove_device(self) -> None:
        """Take the interface down."""
        delete_device(self.interface, self.device)

    def remove(self) -> None:
        """Take down the data plane: the node has left."""
        self.remove_device()
        if self.mux is not None:
            one_port.remove(self.interface)

    def let_go(self) -> None:
        """Close handles and sockets; the data plane stays as it is."""
        self.streams.close()
        self.overlay.close()
        if self.carrier is not None:
            self.carrier.close()
        self.underlay.close()
        self.device.close()
        self.links.close()
        self.control.close()


def _open_underlay(port: int, *, shared: bool) -> Underlay:
    """Open meshd's own sockets; `port` is WireGuard's."""
    if not shared:
        # Others have to know the second port, so it is a fixed one: WireGuard's neighbour.
        return Underlay(port + 1 if port < PORT_MAX else port - 1, fwmark=FWMARK)
    underlay = Underlay(fwmark=FWMARK)
    if underlay.port != port:
        return underlay
    # WireGuard does not listen yet, and the kernel has chosen just that port for us.
    another = Underlay(fwmark=FWMARK)
    underlay.close()
    return another
