"""What the daemon opens on this machine, in the order in which it may fail.

    links ─▶ port free? ─▶ device ─▶ underlay sockets ─▶ one-port rules ─▶ overlay socket ─▶ control

An interface that is there already, from an earlier run, is adopted with all its sessions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.addresses import overlay_prefix
from meshd.control.socket import ControlSocket
from meshd.net import mux as one_port
from meshd.net.mux import PortMux
from meshd.net.overlay import Overlay
from meshd.net.rtnetlink import RouteNetlink
from meshd.net.underlay import Underlay, check_port_free
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
    """What the daemon opens on this machine.  Undone by `opened` if the start does not succeed."""

    def __init__(self, config: Config, start: Start, opened: ExitStack) -> None:
        interface = config.interface
        self.interface = interface
        identity = start.identity
        self.links = RouteNetlink((overlay_prefix(identity.mesh), identity.ipv4_prefix))
        opened.callback(self.links.close)
        was_there = self.links.observe(interface) is not None
        if not was_there:
            check_port_free(config.port)
        self.device: Device = open_device(
            interface, backend=config.backend, private_key=identity.wireguard_key
        )
        if was_there:
            opened.callback(self.device.close)
        else:
            opened.callback(self.remove_device)
        shared = one_port.nft_available()
        # Without nft the second port has to be known to others: the one above WireGuard's.
        self.underlay = Underlay(0 if shared else config.port + 1, fwmark=FWMARK)
        opened.callback(self.underlay.close)
        self.mux: PortMux | None = None
        if shared:
            self.mux = PortMux(interface, config.port, self.underlay.port, FWMARK)
            one_port.apply(self.mux)
            if not was_there:
                opened.callback(one_port.remove, interface)
        self.overlay = Overlay(identity.ipv6, interface)
        opened.callback(self.overlay.close)
        self.control = ControlSocket.listen(config.socket_path)
        opened.callback(self.control.close)

    @property
    def control_port(self) -> int:
        """The port others reach meshd at, where it is not WireGuard's; else 0."""
        return 0 if self.mux is not None else self.underlay.port

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
        self.control.close()
        self.overlay.close()
        self.underlay.close()
        self.device.close()
        self.links.close()
