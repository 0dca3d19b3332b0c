"""The control socket: HTTP with versioned JSON.  Start reading at `api`."""
