"""What the virtual machine boots from: an initramfs that makes the host's root its own.

    kernel ─► /init (busybox): load modules, mount the host's root read-only by virtiofs,
              lay a tmpfs over it ─► switch_root ─► /run/lab-vm/start: mount the rest,
              run the command, send its exit status, power off

Pure apart from reading the modules: bytes come out, nothing is written.
"""

from __future__ import annotations

import gzip
import lzma
import shlex
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from lablib.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODULES = ("virtio_pci", "virtio_console", "virtiofs", "overlay")
ROOT_TAG = "hostroot"
OUT_TAG = "hostout"
OUT_MOUNT = "/out"
OUTPUT_PORT = 1
STATUS_PORT = 2

_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
exec </dev/null >/dev/console 2>&1
for module in $(cat /modules/order); do
  insmod /modules/$module || echo "cannot load $module"
done
mount -t virtiofs -o ro {ROOT_TAG} /lower || {{ echo "cannot mount the host's root"; poweroff -f; }}
mount -t tmpfs -o size=80% changes /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/lower,upperdir=/changes/upper,workdir=/changes/work root /root \\
  || {{ echo "cannot lay a tmpfs over the host's root"; poweroff -f; }}
mount -t tmpfs -o mode=0755 run /root/run
mkdir /root/run/lab-vm
cp /start /root/run/lab-vm/start
umount /proc
mount --move /dev /root/dev
exec switch_root /root /bin/sh /run/lab-vm/start
"""

_START = """
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -sfn /proc/self/fd /dev/fd
ln -sfn /proc/self/fd/0 /dev/stdin
ln -sfn /proc/self/fd/1 /dev/stdout
ln -sfn /proc/self/fd/2 /dev/stderr
{mount_out}
{exports}
hostname lab-vm
ip link set lo up
# Where a distribution's own start has run, this device is there from the beginning.
modprobe tun
ulimit -n 65536
port() {{ ls /dev/vport*p$1; }}
cd {directory} && {command} </dev/null >$(port {output_port}) 2>&1
status=$?
echo $status >$(port {status_port})
sync
umount {out_mount} 2>/dev/null
echo o >/proc/sysrq-trigger
sleep 60
"""

_MOUNT_OUT = f"mkdir -p {OUT_MOUNT} && mount -t virtiofs {OUT_TAG} {OUT_MOUNT}"


def build(
    *,
    kernel_version: str,
    modprobe: str,
    busybox: Path,
    argv: Sequence[str],
    directory: Path,
    env: Mapping[str, str],
    with_out: bool,
) -> bytes:
    """Return the initramfs for one command."""
    modules = [_module(path) for path in _module_files(modprobe, kernel_version)]
    start = _START.format(
        mount_out=_MOUNT_OUT if with_out else "",
        exports="\n".join(f"export {key}={shlex.quote(value)}" for key, value in env.items()),
        directory=shlex.quote(str(directory)),
        command=shlex.join(argv),
        output_port=OUTPUT_PORT,
        status_port=STATUS_PORT,
        out_mount=OUT_MOUNT,
    )
    order = "".join(f"{name}\n" for name, _ in modules)
    names = ("bin", "dev", "proc", "lower", "changes", "root", "modules")
    directories = [(name, stat.S_IFDIR | 0o755, b"") for name in names]
    files = [
        ("init", stat.S_IFREG | 0o755, _INIT.encode()),
        ("start", stat.S_IFREG | 0o644, start.encode()),
        ("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()),
        ("modules/order", stat.S_IFREG | 0o644, order.encode()),
        *((f"modules/{name}", stat.S_IFREG | 0o644, data) for name, data in modules),
    ]
    return _cpio([*directories, *files])


def has_module(modprobe: str, kernel_version: str, module: str) -> bool:
    """Whether a kernel has a module, or has it built in."""
    argv = [modprobe, "--set-version", kernel_version, "--show-depends", module]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _module_files(modprobe: str, kernel_version: str) -> list[str]:
    """Return the files of the modules needed, each after those it depends on."""
    argv = [modprobe, "--set-version", kernel_version, "--show-depends", "--all", *MODULES]
    listing = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    # Lines read "insmod /lib/modules/…/x.ko", or "builtin x".
    words = [line.split() for line in listing.splitlines()]
    return list(dict.fromkeys(path for kind, path, *_ in words if kind == "insmod"))


def _module(path: str) -> tuple[str, bytes]:
    """Read a module, unpacked, since busybox's insmod takes no other."""
    name, dot, packing = Path(path).name.partition(".ko")
    data = Path(path).read_bytes()
    if packing == ".xz":
        data = lzma.decompress(data)
    elif packing == ".gz":
        data = gzip.decompress(data)
    elif packing == ".zst":
        if shutil.which("zstd") is None:
            raise LabError("the kernel's modules are packed with zstd: apt-get install zstd")
        data = subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True).stdout
    return name + dot, data


def _cpio(entries: Sequence[tuple[str, int, bytes]]) -> bytes:
    """Return a newc archive: see the kernel's Documentation/driver-api/early-userspace."""
    archive = bytearray()
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        raw_name = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device (2), its target (2), name size, check
        numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw_name), 0)
        archive += b"070701" + b"".join(b"%08X" % number for number in numbers)
        for part in (raw_name, data):
            archive += part
            archive += bytes(-len(archive) % 4)
    return bytes(archive)
