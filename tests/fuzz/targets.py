"""All decoders there are: importing them registers them.  See `registry`."""

from fuzz import (
    decoders_approval,
    decoders_bootstrap,
    decoders_carrier,
    decoders_control,
    decoders_engine,
    decoders_gossip,
    decoders_portmap,
    decoders_preshared,
    decoders_relay,
    decoders_trust,
)
from fuzz.registry import TARGETS, fuzz

MODULES = (
    decoders_approval,
    decoders_bootstrap,
    decoders_carrier,
    decoders_control,
    decoders_engine,
    decoders_gossip,
    decoders_portmap,
    decoders_preshared,
    decoders_relay,
    decoders_trust,
)

__all__ = ["MODULES", "TARGETS", "fuzz"]
