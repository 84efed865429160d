"""One ROS domain for each test run, loopback only, and the Hypothesis profiles."""

import os

from hypothesis import HealthCheck, settings

from vla_reasoner_ros.ros.middleware import use_shared_memory
from vla_reasoner_ros.ros.processes import DomainLease

_domain = DomainLease()
os.environ["ROS_DOMAIN_ID"] = str(_domain.domain_id)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
use_shared_memory(os.environ)

_relaxed = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", derandomize=True, database=None, **_relaxed)
settings.register_profile("fuzz", max_examples=5000, **_relaxed)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
