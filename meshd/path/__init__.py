"""How each peer is reached: candidates, probes, proven endpoints, sans-IO.  Start at `agent`."""
