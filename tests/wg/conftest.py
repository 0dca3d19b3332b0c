"""Properties are about values: how fast a busy machine tries them decides nothing."""

from hypothesis import HealthCheck, settings

settings.register_profile("meshd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("meshd")
