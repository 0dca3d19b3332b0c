"""Opens a WireGuard interface, whoever implements it, and deletes it again.

An interface that is there already is adopted as it stands, sessions and all; else one is made:

    there is …            auto                         kernel      userspace
    a kernel WireGuard    adopt                        adopt       refuse
    a wireguard-go        adopt                        refuse      adopt
    anything else         refuse                       refuse      refuse
    nothing               kernel's, else wireguard-go  kernel's    wireguard-go

Refusals are a `StartError` of one line that says what to do.  All calls block; only starting or
ending wireguard-go takes longer than milliseconds (see `meshd.wg.userspace`).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from meshd.errors import DeviceError, MeshdError, StartError
from meshd.wg.kernel import KernelDevice
from meshd.wg.userspace import (
    SocketState,
    UserspaceDevice,
    socket_path,
    socket_state,
    start_userspace,
    stop_userspace,
)

if TYPE_CHECKING:
    from meshd.keys import WireGuardKey, WireGuardPrivateKey
    from meshd.wg.types import Device

BACKENDS: Final = ("auto", "kernel", "userspace")

CAP_NET_ADMIN = 12  # linux/capability.h
PROCESS_STATUS = Path("/proc/thread-self/status")

_NO_KERNEL_WIREGUARD: Final = frozenset({
    errno.EOPNOTSUPP,  # no such kind of link
    errno.ENOENT,  # no such netlink family
})  # fmt: skip


def open_device(
    interface: str,
    *,
    backend: str = "auto",
    private_key: WireGuardPrivateKey | None = None,
    former: WireGuardKey | None = None,
) -> Device:
    """Return the WireGuard interface of this name in the caller's network namespace.

    Given our `private_key`, an interface that holds another one is not adopted: it is somebody
    else's.  It may hold the one whose public half is `former`: a run that was killed has not got
    round to replacing it.  Raise StartError, with nothing changed.
    """
    assert backend in BACKENDS, backend
    require_privilege(interface)
    try:
        with _Links() as links:
            device = _open(interface, backend, links)
        if private_key is not None:
            _require_key(private_key, former, interface, device)
    except DeviceError as exc:
        if exc.errno in {errno.EPERM, errno.EACCES}:
            raise _unprivileged(interface) from exc
        raise StartError(f"cannot set up interface {interface}: {exc}") from exc
    return device


def delete_device(interface: str, device: Device) -> None:
    """Close a device and delete its interface, if it is still there.  Raise DeviceError."""
    device.close()
    if device.backend == "userspace":
        stop_userspace(interface)
        return
    with _Links() as links:
        # Somebody may have put another one in its place.
        if links.kind(interface) == "wireguard":
            links.delete(interface)


def require_privilege(interface: str) -> None:
    """Raise StartError where this process may not make interfaces."""
    for line in PROCESS_STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and not int(value, 16) >> CAP_NET_ADMIN & 1:
            raise _unprivileged(interface)


def _open(interface: str, backend: str, links: _Links) -> Device:
    kind = links.kind(interface)
    if kind is not None:
        return _adopt(interface, backend, kind)
    if backend != "userspace":
        try:
            links.add_wireguard(interface)
        except DeviceError as exc:
            if exc.errno not in _NO_KERNEL_WIREGUARD:
                raise
            if backend == "kernel":
                raise StartError(
                    "this kernel has no WireGuard: modprobe wireguard, install a kernel that has "
                    "it (Linux 5.6), or choose --backend userspace"
                ) from exc
        else:
            return _open_new(interface, links)
    return start_userspace(interface)


def _open_new(interface: str, links: _Links) -> KernelDevice:
    try:
        return KernelDevice(interface)
    except DeviceError:
        links.delete(interface)
        raise


def _adopt(interface: str, backend: str, kind: str) -> Device:
    if kind == "wireguard":
        if backend == "userspace":
            raise _wrong_backend(interface, "the kernel's WireGuard", "kernel")
        return KernelDevice(interface)
    if kind == "tun":
        state = socket_state(interface)
        if state is SocketState.OURS:
            if backend == "kernel":
                raise _wrong_backend(interface, "wireguard-go's", "userspace")
            return UserspaceDevice(interface)
    served = f" that no WireGuard serves at {socket_path(interface)}" if kind == "tun" else ""
    raise StartError(
        f"interface {interface} is in use by something else (a {kind} interface{served}): choose "
        f"another --interface, or remove it with: ip link delete {interface}"
    )


def _wrong_backend(interface: str, owner: str, backend: str) -> StartError:
    return StartError(
        f"interface {interface} is there and is {owner}: choose --backend {backend}, or remove it "
        f"with: ip link delete {interface}"
    )


def _require_key(
    private_key: WireGuardPrivateKey, former: WireGuardKey | None, interface: str, device: Device
) -> None:
    try:
        found = device.observe().private_key
        if found is not None and found.public not in {private_key.public, former}:
            raise StartError(
                f"interface {interface} is somebody else's WireGuard (it has another private "
                f"key): choose another --interface, or remove it with: ip link delete {interface}"
            )
    except MeshdError:
        device.close()
        raise


def _unprivileged(interface: str) -> StartError:
    user = "root here lacks" if os.geteuid() == 0 else "this user lacks"
    return StartError(
        f"cannot set up interface {interface}: {user} CAP_NET_ADMIN; run meshd as root, or grant "
        "it this capability"
    )


class _Links:
    """The little of routing netlink that is needed here."""

    def __init__(self) -> None:
        # These take some 80 ms to import, which only those who open a device should pay.
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        self._refusal = NetlinkError
        self._netlink: Any = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._netlink.close()

    def kind(self, interface: str) -> str | None:
        """Return what kind of link an interface is, or None when there is no such interface."""
        try:
            links = list(self._netlink.link("get", ifname=interface))
        except self._refusal as refusal:
            if refusal.code == errno.ENODEV:
                return None
            raise DeviceError(f"find interface {interface}", refusal.code) from refusal
        kind: str | None = links[0].get(("linkinfo", "kind"))
        return kind or "hardware or loopback"

    def add_wireguard(self, interface: str) -> None:
        try:
            self._netlink.link("add", ifname=interface, kind="wireguard")
        except self._refusal as refusal:
            raise DeviceError(f"add interface {interface}", refusal.code) from refusal

    def delete(self, interface: str) -> None:
        try:
            self._netlink.link("del", ifname=interface)
        except self._refusal as refusal:
            if refusal.code != errno.ENODEV:
                raise DeviceError(f"delete interface {interface}", refusal.code) from refusal
