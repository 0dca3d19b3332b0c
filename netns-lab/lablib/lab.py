"""A lab: one topology, running.

Everything it makes is inside namespaces of its own, so taking it down is ending the processes in
them and removing its directory, /run/mlab/NAME.  It ends with the program that made it, however
that ends (`lablib.warden`), unless it is kept:

    topology.json     which topology this is
    *.ns              a record of each namespace, written by its holder
    *.log, *.pcap     what the nodes said, what was captured
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lablib import daemon, fabric, warden
from lablib.errors import LabError, UsageError
from lablib.namespace import Namespace, destroy
from lablib.node import Node
from lablib.ping import Matrix, ping_matrix
from lablib.sites import topology

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from lablib.forking import ForkedProcess
    from lablib.topology import Topology

PREFIX = "mlab"
DIRECTORY = Path("/run") / PREFIX
DEFAULT_NAME = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_numbers = itertools.count(1)


class Lab:
    """A lab by name; as a context manager it is up inside and gone afterwards."""

    def __init__(
        self, plan: Topology, *, name: str | None = None, how: daemon.Start | None = None
    ) -> None:
        self.topology = plan
        self.name = f"t{os.getpid()}-{next(_numbers)}" if name is None else name
        self.directory = _directory(self.name)
        self.nodes: dict[str, Node] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.how = how or daemon.Start.default()
        self._warden: ForkedProcess | None = None

    @classmethod
    def attach(cls, name: str = DEFAULT_NAME) -> Self:
        """Return a lab that is up, made by this or another process."""
        try:
            saved = json.loads((_directory(name) / "topology.json").read_text())
        except FileNotFoundError:
            raise LabError(f"no lab called {name!r} is up; `lab up` makes one") from None
        lab = cls(topology(saved["topology"], saved["members"]), name=name)
        for path in sorted(lab.directory.glob("*.ns")):
            namespace = Namespace.load(path)
            if not namespace.alive():
                raise LabError(f"{namespace.name} is gone; `lab down` clears up what is left")
            lab.namespaces[namespace.name] = namespace
        lab._make_nodes()
        return lab

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @property
    def fabric(self) -> Namespace:
        """The namespace with all the wires."""
        return self.namespaces[fabric.FABRIC]

    def up(self) -> None:
        """Build it all; what was built is removed again if anything goes wrong."""
        if os.geteuid() != 0:
            raise LabError("making network namespaces takes root")
        with _locked():
            try:
                self.directory.mkdir(parents=True)
            except FileExistsError:
                raise LabError(
                    f"lab {self.name!r} is up, or was left behind; `lab down` removes it"
                ) from None
            try:
                self._warden = warden.post(self.directory, lambda: take_down(self.name))
                self._build()
            except BaseException:
                _remove(self.directory)
                self.keep()
                raise

    def keep(self) -> None:
        """Let the lab outlive this program; `lab down` removes it."""
        if self._warden is not None:
            warden.dismiss(self._warden)
            self._warden = None

    def down(self) -> None:
        """End every process in the lab and forget it.  Harmless when it is not up."""
        take_down(self.name)
        self.keep()
        for node in self.nodes.values():
            node.reap()
        self.nodes.clear()
        self.namespaces.clear()

    def ping_underlay(self, *, version: int = 4, timeout: float = 5.0) -> Matrix:
        """Ping everyone from everyone on the underlay, where both have that IP version."""
        addresses = {
            name: str(interface.ip)
            for name, node in self.nodes.items()
            if (interface := node.ipv4 if version == 4 else node.ipv6) is not None
        }
        return self.ping_all(addresses, timeout=timeout)

    def ping_all(self, addresses: Mapping[str, str], *, timeout: float = 5.0) -> Matrix:
        """Ping everyone from everyone at these addresses, by name, until all have answered."""
        targets = {
            source: {name: each for name, each in addresses.items() if name != source}
            for source in addresses
        }
        sources = {name: self.namespaces[name] for name in addresses}
        return ping_matrix(sources, targets, timeout=timeout)

    def _build(self) -> None:
        saved = {"topology": self.topology.name, "members": len(self.topology.members)}
        (self.directory / "topology.json").write_text(json.dumps(saved))
        sysctls = {fabric.FABRIC: fabric.FABRIC_SYSCTLS}
        sysctls |= {router.name: fabric.ROUTER_SYSCTLS for router in self.topology.routers}
        sysctls |= {member.name: fabric.MEMBER_SYSCTLS for member in self.topology.members}
        starting = [
            Namespace.create(name, self.directory / f"{name}.ns", sysctls=values)
            for name, values in sysctls.items()
        ]
        for each in starting:
            namespace = each.wait()
            self.namespaces[namespace.name] = namespace
        pids = {name: namespace.pid for name, namespace in self.namespaces.items()}
        wires = fabric.fabric_commands(self.topology, pids)
        self.fabric.run(["ip", "-batch", "-"], stdin=wires)
        self._configure()
        self._make_nodes()

    def _configure(self) -> None:
        """Give every machine its addresses, routes and rules, all at the same time."""
        batch = ["ip", "-batch", "-"]
        jobs = [
            (self.namespaces[member.name], batch, fabric.member_commands(member))
            for member in self.topology.members
        ]
        for router in self.topology.routers:
            machine = self.namespaces[router.name]
            jobs.append((machine, batch, fabric.router_commands(router)))
            if rules := fabric.router_rules(self.topology, router):
                jobs.append((machine, ["nft", "-f", "-"], rules))
        running = [machine.start(argv, stdin=text) for machine, argv, text in jobs]
        for each in running:
            each.finish()
        for member in self.topology.members:
            hosts = fabric.hosts_file(self.topology, member)
            self.namespaces[member.name].file("/etc/hosts").write_text(hosts)

    def _make_nodes(self) -> None:
        self.nodes = {member.name: Node(member, self) for member in self.topology.members}


def names() -> list[str]:
    """Return the names of the labs that are up, or were not taken down."""
    return sorted(path.name for path in DIRECTORY.glob("*") if path.is_dir())


def take_down(name: str) -> int:
    """Take down what there is of a lab, also after a crash; return how many processes it had."""
    directory = _directory(name)
    if not directory.exists():
        return 0
    with _locked():
        return _remove(directory)


def _remove(directory: Path) -> int:
    ended = destroy([Namespace.load(path).record for path in directory.glob("*.ns")])
    shutil.rmtree(directory, ignore_errors=True)
    # Only when it is empty, that is when no other lab is up.
    with contextlib.suppress(OSError):
        DIRECTORY.rmdir()
    return len(ended)


def _directory(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UsageError(f"a lab's name is made of a-z, 0-9 and -, unlike {name!r}")
    return DIRECTORY / name


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Keep others from building or removing while we do."""
    # The labs' own directory comes and goes with them.
    fd = os.open("/run", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
