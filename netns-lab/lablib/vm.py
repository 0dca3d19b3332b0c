"""Running a command in a virtual machine with the distribution's own kernel.

The machine's root is the host's, shared read-only by virtiofs, under a tmpfs: the command finds
everything where it is on the host, and what it writes disappears with the machine, but for what
it writes to /out. So a lab meets a kernel that has WireGuard and netem, whatever the host's has:

    host                              guest
    +-----------+   virtio-serial 1   +--------------------------+
    | stdout    |<--------------------| output of the command    |
    | exit      |<--- 2 --------------| its exit status          |
    | /         |==== virtiofs ro ===>| / under a tmpfs          |
    | OUT       |<=== virtiofs rw ===>| /out                     |
    +-----------+                     +--------------------------+

QEMU emulates the processor (TCG), so no /dev/kvm is needed. Python is some ten times slower inside,
kernel work about as much: deadlines must be generous.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lablib import console, initramfs
from lablib.daemon import IN_VM, PROJECT
from lablib.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

STATUS_TIMEOUT = 124  # as timeout(1)
STATUS_PANIC = 125  # the machine ended without giving an exit status
MEMORY_MIB = 1024
PROCESSORS = 2
TIMEOUT = 900.0
SHARE_TIMEOUT = 10.0
STOP_TIMEOUT = 10.0
CONSOLE_BYTES_SHOWN = 3000
# Without mitigations and address randomisation Python starts a quarter faster; the check of the
# timer fails by chance where the host is so busy that an emulated tick comes late.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 mitigations=off norandmaps no_timer_check"
SYSTEM_PROGRAMS = "/usr/sbin:/sbin"
VIRTIOFSD_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
# In the guest these hold what belongs to it, so no checkout can be there.
GUEST_OWN = ("/dev", "/proc", "/run", "/sys")
_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "TERM", "COLUMNS", "PYTHONHASHSEED")


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs and the kernel that a virtual machine takes."""

    qemu: str
    busybox: str
    modprobe: str
    virtiofsd: str
    kernel: Path
    kernel_version: str


@dataclass(frozen=True, slots=True)
class VirtualMachine:
    """How to run commands in a virtual machine."""

    memory_mib: int = MEMORY_MIB
    processors: int = PROCESSORS
    timeout: float = TIMEOUT  # seconds for boot and command together
    kernel: Path | None = None  # the newest fitting one in /boot by default
    out: Path | None = None  # a directory that is /out inside, and is written through

    def run(
        self,
        argv: Sequence[str],
        *,
        directory: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run a command as root in the machine, with its output as ours; return its exit status.

        STATUS_TIMEOUT and STATUS_PANIC stand for a machine that was stopped or that broke down.
        """
        where = (directory or Path.cwd()).resolve()
        if any(where.is_relative_to(own) for own in GUEST_OWN):
            raise LabError(f"{where} is not seen in the virtual machine; use another directory")
        tools = find_tools(self.kernel)
        compile_project()
        with tempfile.TemporaryDirectory(prefix="mlab-vm-") as name:
            work = Path(name)
            (work / "initramfs").write_bytes(
                initramfs.build(
                    kernel_version=tools.kernel_version,
                    modprobe=tools.modprobe,
                    busybox=Path(tools.busybox),
                    argv=argv,
                    directory=where,
                    env=_guest_environment(env or {}),
                    with_out=self.out is not None,
                )
            )
            return self._boot(tools, work)

    def _boot(self, tools: Tools, work: Path) -> int:
        qemu = self._qemu_command(tools, work)
        shares = [(initramfs.ROOT_TAG, Path("/"), "always")]
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            shares.append((initramfs.OUT_TAG, self.out.resolve(), "none"))
        with contextlib.ExitStack() as stack:
            for tag, directory, cache in shares:
                socket = stack.enter_context(_share(tools.virtiofsd, work, tag, directory, cache))
                qemu += ["-chardev", f"socket,id={tag},path={socket}"]
                qemu += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
            console.command("vm", qemu)
            # Its input stays open and empty: at its end QEMU would stop carrying the output.
            machine = stack.enter_context(_ended(subprocess.Popen(qemu, stdin=subprocess.PIPE)))
            try:
                machine.wait(self.timeout)
            except subprocess.TimeoutExpired:
                machine.kill()
                text = f"lab: stopped the virtual machine after {self.timeout:g} s"
                print(text, file=sys.stderr)
                return STATUS_TIMEOUT
        return _read_status(work)

    def _qemu_command(self, tools: Tools, work: Path) -> list[str]:
        memory = f"memory-backend-memfd,id=memory,size={self.memory_mib}M,share=on"
        output = f"virtserialport,nr={initramfs.OUTPUT_PORT},chardev=output"
        status = f"virtserialport,nr={initramfs.STATUS_PORT},chardev=status"
        return [
            *(tools.qemu, "-nodefaults", "-display", "none", "-no-reboot"),
            # This processor model is the fastest at Curve25519 under emulation.
            *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem"),
            *("-smp", str(self.processors), "-m", str(self.memory_mib)),
            *("-object", memory, "-numa", "node,memdev=memory"),
            *("-kernel", str(tools.kernel), "-initrd", str(work / "initramfs")),
            *("-append", KERNEL_OPTIONS),
            *("-serial", f"file:{work / 'console'}"),
            *("-device", "virtio-serial-pci,max_ports=4"),
            *("-chardev", "stdio,id=output,signal=off", "-device", output),
            *("-chardev", f"file,id=status,path={work / 'status'}", "-device", status),
        ]


def find_tools(kernel: Path | None = None) -> Tools:
    """Find what a virtual machine takes.  Raise LabError that names all packages missing."""
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PROGRAMS}"
    wanted = {
        "qemu-system-x86_64": "qemu-system-x86",
        "busybox": "busybox-static",
        "modprobe": "kmod",
    }
    found = {name: shutil.which(name, path=path) for name in wanted}
    missing = [package for name, package in wanted.items() if found[name] is None]
    virtiofsd = next((place for place in VIRTIOFSD_PLACES if Path(place).exists()), None)
    if virtiofsd is None:
        # Debian 12 has it in qemu-system-common, later ones in a package of its own.
        missing.append("virtiofsd" if found["qemu-system-x86_64"] else "qemu-system-common")
    kernels = [kernel] if kernel else sorted(Path("/boot").glob("vmlinuz-*"), key=_preference)
    modprobe = found["modprobe"]
    fitting = [each for each in kernels if modprobe and _fits(modprobe, each)]
    if not fitting:
        missing.append("linux-image-cloud-amd64")
    if missing:
        raise LabError(
            "the virtual machine takes packages that are not here; contrib/setup gets them, or "
            f"apt-get install --no-install-recommends {' '.join(missing)}"
        )
    busybox = str(found["busybox"])
    if b"/ld-linux" in Path(busybox).read_bytes()[:4096]:
        raise LabError(f"{busybox} is not linked statically: apt-get install busybox-static")
    return Tools(
        qemu=str(found["qemu-system-x86_64"]),
        busybox=busybox,
        modprobe=str(modprobe),
        virtiofsd=str(virtiofsd),
        kernel=fitting[-1],
        kernel_version=_kernel_version(fitting[-1]),
    )


def compile_project() -> None:
    """Compile the project's Python on this side: the machine would do it anew every time."""
    folders = [str(PROJECT / name) for name in ("meshd", "netns-lab", "tests")]
    argv = [sys.executable, "-m", "compileall", "-q", *folders]
    subprocess.run(argv, check=False, stdout=subprocess.DEVNULL)


def _kernel_version(kernel: Path) -> str:
    return kernel.name.removeprefix("vmlinuz-")


def _preference(kernel: Path) -> tuple[bool, list[int]]:
    """Sort kernels made for virtual machines last, and newer ones behind older ones."""
    numbers = [int(digits) for digits in re.findall(r"\d+", kernel.name)]
    return "cloud" in kernel.name, numbers


def _fits(modprobe: str, kernel: Path) -> bool:
    version = _kernel_version(kernel)
    needed = (*initramfs.MODULES, "wireguard")
    return all(initramfs.has_module(modprobe, version, module) for module in needed)


def _guest_environment(extra: Mapping[str, str]) -> dict[str, str]:
    kept = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
    # What it compiles is forgotten with the machine, so it had better not try.
    return {"LANG": "C.UTF-8", **kept, "PYTHONDONTWRITEBYTECODE": "1", IN_VM: "1", **extra}


@contextlib.contextmanager
def _share(virtiofsd: str, work: Path, tag: str, directory: Path, cache: str) -> Iterator[Path]:
    """Serve a directory by virtiofs on a socket."""
    socket, log = work / f"{tag}.socket", work / f"{tag}.log"
    options = f"source={directory},cache={cache},sandbox=chroot,no_posix_lock"
    argv = [virtiofsd, f"--socket-path={socket}", "-o", options]
    if "libexec" in virtiofsd:  # the later one, written in Rust
        argv = [virtiofsd, f"--socket-path={socket}", f"--shared-dir={directory}"]
        argv += [f"--cache={'never' if cache == 'none' else cache}", "--sandbox=chroot"]
        # Overlayfs takes no directory below that the guest would have to mount first.
        argv += ["--no-announce-submounts"]
    console.command("vm", argv)
    with log.open("wb") as output:
        daemon = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=output)
    with _ended(daemon):
        gives_up_at = time.monotonic() + SHARE_TIMEOUT
        while not socket.exists():
            if daemon.poll() is not None or time.monotonic() > gives_up_at:
                raise LabError(f"cannot share {directory}: {log.read_text(errors='replace')}")
            time.sleep(0.01)
        yield socket


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Let a process run for as long as the block lasts."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _read_status(work: Path) -> int:
    text = (work / "status").read_text().strip()
    if text.isdigit():
        return int(text)
    tail = (work / "console").read_text(errors="replace")[-CONSOLE_BYTES_SHOWN:]
    print(f"lab: the virtual machine broke down; its console ends:\n{tail}", file=sys.stderr)
    return STATUS_PANIC
