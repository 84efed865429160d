"""A client of launched nodes, for the tests of this folder."""

import time

import rclpy
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import ChangeState, GetState

PATIENCE_S = 240.0  # the first search of a machine is compiled


class Client:
    """Calls services of the nodes in one namespace."""

    def __init__(self, namespace=""):
        rclpy.init()
        self.node = rclpy.create_node("client", namespace=namespace)

    def close(self):
        self.node.destroy_node()
        rclpy.shutdown()

    def call(self, kind, name, request, timeout=PATIENCE_S):
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(timeout), f"service {name} did not appear"
        end = time.monotonic() + timeout
        while True:  # an answer can be lost while the service does not know the client yet
            future = client.call_async(request)
            rclpy.spin_until_future_complete(self.node, future, timeout_sec=5.0)
            if future.done():
                break
            assert time.monotonic() < end, f"service {name} did not answer"
        self.node.destroy_client(client)
        return future.result()

    def state(self, name):
        return self.call(GetState, f"{name}/get_state", GetState.Request()).current_state.id

    def wait_until_active(self, *names):
        end = time.monotonic() + PATIENCE_S
        for name in names:
            while self.state(name) != State.PRIMARY_STATE_ACTIVE:
                assert time.monotonic() < end, f"{name} did not become active"
                time.sleep(0.2)

    def change(self, name, transition):
        request = ChangeState.Request()
        request.transition.id = transition
        return self.call(ChangeState, f"{name}/change_state", request).success

    def receive(self, kind, topic, timeout=30.0):
        received = []
        subscription = self.node.create_subscription(kind, topic, received.append, 10)
        end = time.monotonic() + timeout
        while not received and time.monotonic() < end:
            rclpy.spin_once(self.node, timeout_sec=0.1)
        self.node.destroy_subscription(subscription)
        return received[0] if received else None
