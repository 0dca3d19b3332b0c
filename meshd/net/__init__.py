"""Everything meshd puts on and around its WireGuard interface.  Start reading at `link`."""
