"""A home: a router with miniupnpd on it, and a machine behind it, each in a namespace.

    host 192.168.2.2 ── 192.168.2.1 router 20.0.2.2 ── nobody

The outside is an address that somebody on the internet has: miniupnpd gives no port of one that is
reserved for documentation.  Nothing leaves the namespaces.
"""

import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from meshd.portmap import natpmp
from net.namespaces import join, namespaces

OUTSIDE = "20.0.2.2"
MAPPING = Path(__file__).with_name("mapping.py")
TIMEOUT = 60.0

RULES = """
table inet router {
  chain mapped { }
  chain prerouting_mapped { }
  chain postrouting_mapped { }
  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname wan ct state established,related accept
    iifname wan jump mapped
    iifname wan drop
  }
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    iifname wan jump prerouting_mapped
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    oifname wan masquerade random
  }
}
"""

_CONFIGURATION = """
ext_ifname={wan}
listening_ip={lan}
http_port=0
enable_natpmp={nat_pmp}
enable_upnp={upnp}
secure_mode=yes
system_uptime=no
uuid=6d657368-6d65-7368-6d65-736800000001
lease_file=
upnp_table_name=router
upnp_nat_table_name=router
upnp_forward_chain=mapped
upnp_nat_chain=prerouting_mapped
upnp_nat_postrouting_chain=postrouting_mapped
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""


def configuration(*, nat_pmp=True, upnp=True, wan="wan", lan="lan"):
    """What miniupnpd is to read, where RULES are loaded."""
    words = {True: "yes", False: "no"}
    return _CONFIGURATION.format(nat_pmp=words[nat_pmp], upnp=words[upnp], wan=wan, lan=lan)


class Home:
    """A router and a machine behind it."""

    def __init__(self, router, host, directory):
        self.router, self.host = router, host
        self._directory = directory
        self._daemon = None

    def start_daemon(self, **how):
        """Start miniupnpd on the router."""
        file = self._directory / "miniupnpd.conf"
        file.write_text(configuration(**how))
        pid = self._directory / "miniupnpd.pid"
        log = (self._directory / "miniupnpd.log").open("ab")
        self._daemon = self.router.start(
            "miniupnpd", "-f", str(file), "-P", str(pid), "-d", stdout=log, stderr=log
        )
        log.close()

    def stop_daemon(self):
        """End it; what it has mapped goes with it."""
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(TIMEOUT)
            self._daemon = None

    def epoch(self):
        """For how many seconds the router's daemon has run, by NAT-PMP."""

        def ask():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(TIMEOUT)
                asking.connect(("192.168.2.1", natpmp.PORT))
                asking.send(natpmp.address_request())
                return natpmp.decode_untrusted(asking.recv(64)).epoch

        return self.host.call(ask)

    def mapped(self):
        """The ports that lead inside, as the kernel has them: outer port to inner address."""
        listed = self.router.run("nft -j list chain inet router prerouting_mapped")
        found = {}
        for item in json.loads(listed)["nftables"]:
            steps = item.get("rule", {}).get("expr", [])
            ports = [
                step["match"]["right"]
                for step in steps
                if step.get("match", {}).get("left", {}).get("payload", {}).get("field") == "dport"
            ]
            for step in steps:
                if "dnat" in step:
                    found[ports[0]] = f"{step['dnat']['addr']}:{step['dnat']['port']}"
        return found


@contextlib.contextmanager
def home(directory, outside=OUTSIDE):
    """Make one, with nothing running on the router."""
    with namespaces(3) as (router, host, internet):
        join(router, "lan", host, "eth0")
        join(router, "wan", internet, "peer")
        router.run(
            "ip address add 192.168.2.1/24 dev lan; sysctl -qw net.ipv4.ip_forward=1;"
            f"ip address add {outside}/24 dev wan"
        )
        router.run("nft -f -", stdin=RULES)
        host.run("ip address add 192.168.2.2/24 dev eth0; ip route add default via 192.168.2.1")
        made = Home(router, host, directory)
        try:
            yield made
        finally:
            made.stop_daemon()


class Mapping:
    """meshd's port mapping, running on a machine, and nothing else of meshd."""

    def __init__(self, host, port=51820):
        root = Path(__file__).parents[2]
        self.views = []
        self._process = host.start(
            sys.executable, str(MAPPING), str(port),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
            env={"PYTHONPATH": str(root), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip

    def until(self, holds):
        """Read views until one is as it should be, and return it."""
        until = time.monotonic() + TIMEOUT
        while time.monotonic() < until:
            line = self._process.stdout.readline()
            assert line, "it has ended"
            view = json.loads(line)
            if not self.views or view != self.views[-1]:
                self.views.append(view)
            if holds(view):
                return view
        raise AssertionError(f"never seen; but {self.views}")

    def tell(self, word):
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def kill(self):
        self._process.kill()
        self._process.wait(TIMEOUT)
        self._process.stdin.close()
        self._process.stdout.close()


@contextlib.contextmanager
def mapping(home_, **how):
    running = Mapping(home_.host, **how)
    try:
        yield running
    finally:
        running.kill()
