"""Over TCP: what carries UDP datagrams where UDP is blocked, sans-IO.  Start at `frames`."""
