"""What may be asked for, in seconds: meshctl explains it, and the daemon insists."""

from __future__ import annotations

INVITE_LIFETIME_MIN = 60.0
INVITE_LIFETIME_MAX = 30 * 86400.0
INVITE_LIFETIME_DEFAULT = 3600.0

CREDENTIAL_LIFETIME_MIN = 10.0
CREDENTIAL_LIFETIME_MAX = 3660 * 86400.0
CREDENTIAL_LIFETIME_DEFAULT = 365 * 86400.0

WINDOW_MIN = 10.0  # in which newcomers may ask for approval
WINDOW_MAX = 3600.0
WINDOW_DEFAULT = 600.0
