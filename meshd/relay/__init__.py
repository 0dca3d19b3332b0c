"""Relays: ciphertext passed on for two members that cannot reach each other; without IO."""
