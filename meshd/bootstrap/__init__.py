"""Getting in: one round trip on the underlay, sans-IO.  Start reading at `messages`."""
