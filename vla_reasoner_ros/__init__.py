"""VLA-Reasoner for ROS 2: tree search over learned models in front of a frozen VLA.

The generated messages (``vla_reasoner_ros.msg``) live in the installed package; extending the path
lets the source tree and the installed one be used together.
"""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

__version__ = "0.1.0"
