"""WireGuard devices: desired and observed state, their diff, and two backends that apply it."""
