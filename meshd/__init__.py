"""One private WireGuard network over any set of Linux machines, with no central server."""

__version__ = "0.1.0"
