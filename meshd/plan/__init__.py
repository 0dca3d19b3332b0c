"""From facts to desired state, purely.  Start reading at `plan`."""
