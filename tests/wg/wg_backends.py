"""Which backends this machine is required to have.

    MESHD_CONTRACT_BACKENDS=fake,userspace            wireguard-go, on any kernel (the default)
    MESHD_CONTRACT_BACKENDS=fake,kernel,userspace     where the kernel has WireGuard

What is named is tested and not skipped, whatever the machine says.
"""

from __future__ import annotations

import os

REQUIRED = os.environ.get("MESHD_CONTRACT_BACKENDS", "fake,userspace").split(",")
REAL = [backend for backend in REQUIRED if backend != "fake"]
KERNEL = "kernel" in REQUIRED

assert set(REQUIRED) <= {"fake", "kernel", "userspace"}, REQUIRED
