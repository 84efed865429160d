"""One ROS domain for each test process, loopback only, one thread, and the Hypothesis profiles."""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings

from vla_reasoner_ros.ros.middleware import use_shared_memory
from vla_reasoner_ros.ros.processes import DomainLease

_domain = DomainLease()
os.environ["ROS_DOMAIN_ID"] = str(_domain.domain_id)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
use_shared_memory(os.environ)
# The tests share the cores: threads that wait for one another make a busy machine much slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nodes that the tests start run the modules that the tests import, with one cache of kernels.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
)

_relaxed = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", derandomize=True, database=None, **_relaxed)
settings.register_profile("fuzz", max_examples=5000, **_relaxed)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
