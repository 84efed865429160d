"""A node that configures and cannot activate."""

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.ros.lifecycle import BaseParameters, LifecycleNode, run


class FailingNode(LifecycleNode[BaseParameters]):
    parameters_class = BaseParameters

    def configure(self):
        pass

    def activate(self):
        raise ConfigurationError("the arm is not there")


run(FailingNode, "failing_node")
