"""Asking the router for a port that leads to ours: PCP, NAT-PMP, UPnP IGD, without IO."""
