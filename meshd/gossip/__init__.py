"""SWIM membership with signed claims, sans-IO.  Start reading at `claim`, then `node`."""
