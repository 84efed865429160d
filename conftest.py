"""One ROS domain for each test run, loopback only, and the Hypothesis profiles."""

import os
import random
import socket

from hypothesis import HealthCheck, settings

_DDS_PORT_BASE, _DDS_DOMAIN_GAIN = 7400, 250  # DDSI-RTPS 2.3, 9.6.1.1
_DOMAINS = range(1, 101)  # above, the ports meet Linux's ephemeral range


def _free_domain() -> int:
    for domain in random.SystemRandom().sample(_DOMAINS, len(_DOMAINS)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", _DDS_PORT_BASE + _DDS_DOMAIN_GAIN * domain))
            except OSError:
                continue
            return domain
    raise RuntimeError("no free ROS domain: every discovery port of 1 to 100 is taken")


os.environ["ROS_DOMAIN_ID"] = str(_free_domain())
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

_relaxed = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", derandomize=True, database=None, **_relaxed)
settings.register_profile("fuzz", max_examples=5000, **_relaxed)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
