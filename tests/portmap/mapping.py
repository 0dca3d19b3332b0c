"""Runs port mapping alone, where it is started, and prints its view a few times a second.

`release` on standard input ends the mapping; `router` has it look for the default route again.
"""

import json
import sys

import trio

from meshd.daemon.portmap import PortMapping
from meshd.keys import NodeKey
from meshd.net.local import router_of
from meshd.net.rtnetlink import RouteNetlink

INTERVAL = 0.05


async def main(port):
    async def tell(_endpoint):
        pass

    mapping = PortMapping(NodeKey(bytes(32)), port=port, fwmark=1, excluded=(), tell=tell)
    words = {"release": mapping.release, "router": look_for_router}

    async def show():
        while True:
            view = mapping.view()
            shown = {
                "state": view.state,
                "method": view.method,
                "endpoint": view.endpoint and str(view.endpoint),
                "reason": view.reason,
                "findings": [finding.code for finding in mapping.findings()],
            }
            print(json.dumps(shown), flush=True)
            await trio.sleep(INTERVAL)

    async def obey():
        lines = trio.wrap_file(sys.stdin)
        async for line in lines:
            word = line.strip()
            await (words[word]() if word == "release" else look_for_router(mapping))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mapping.run)
        nursery.start_soon(show)
        await look_for_router(mapping)
        await obey()


async def look_for_router(mapping):
    with RouteNetlink(()) as links:
        await mapping.gateway_changed(router_of(links.default_routes()))


trio.run(main, int(sys.argv[1]))
