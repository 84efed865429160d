"""The base of all nodes, as a process of its own."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import String

NODE = """
import gc
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from std_msgs.msg import String
from vla_reasoner_ros.errors import ConfigurationError, ObservationError
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.lifecycle import BaseParameters, LifecycleNode, run

@dataclass(frozen=True)
class EchoParameters(BaseParameters):
    greeting: str = parameter("hello", "What it says.")
    weights: str = parameter("good", "Weights.", read_only=True)

class Echo(LifecycleNode[EchoParameters]):
    parameters_class = EchoParameters

    def configure(self):
        print("configure", flush=True)
        self.models = ThreadPoolExecutor(max_workers=1)
        if self.parameters.weights == "slow":
            self.result_of(self.models.submit(time.sleep, 600))
        greeting = self.parameters.greeting
        while self.parameters.weights == "large" and self.parameters.greeting == greeting:
            time.sleep(0.02)
        self.said = self.create_lifecycle_publisher(String, "said", qos.STATE)
        self.create_subscription(
            String, "heard", self.guarded("heard", self.hear), qos.STATE, callback_group=self.work
        )
        if self.parameters.weights not in ("good", "large"):
            raise ConfigurationError(f"weights are {self.parameters.weights}")

    def activate(self):
        print("activate", flush=True)
        print("frozen at activate:", gc.get_freeze_count() > 0, flush=True)
        if self.parameters.greeting == "mute":
            raise RuntimeError("cannot speak")

    def hear(self, message):
        if message.data == "nonsense":
            raise ObservationError("heard nonsense")
        if message.data == "defect":
            raise ZeroDivisionError("a defect")
        if message.data == "think":
            self.models.submit(time.sleep, 600)
        if message.data == "hang":
            print("hanging", flush=True)
            time.sleep(600)
        self.said.publish(String(data=f"{self.parameters.greeting} {message.data}"))

    def parameters_changed(self, parameters):
        print("changed", parameters.greeting, flush=True)

    def deactivate(self):
        self.said.publish(String(data="bye"))
        print("deactivate", flush=True)

    def teardown(self):
        print("teardown", flush=True)
        print("frozen at teardown:", gc.get_freeze_count() > 0, flush=True)
        self.end_thread(self.models, lambda: None)

run(Echo, "echo")
"""


class Echo:
    """The process, and a client that talks to it."""

    def __init__(self, folder, *overrides):
        script = folder / "echo.py"
        script.write_text(NODE)
        words = [word for override in overrides for word in ("-p", override)]
        self._log = (folder / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, script, "--ros-args", *words],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node("client", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self.said, self.status = [], None
        self._node.create_subscription(String, "said", lambda m: self.said.append(m.data), 10)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnose, 10)
        self.heard = self._node.create_publisher(String, "heard", 10)

    def _diagnose(self, message):
        self.status = message.status[0]

    def wait(self, condition, what, timeout=120.0):
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, f"{what} did not happen; the log:\n{self.log()}"
            self._executor.spin_once(timeout_sec=0.05)

    def log(self):
        self._log.flush()
        with open(self._log.name) as file:
            return file.read()

    def exit_code(self):
        self.wait(lambda: self.process.poll() is not None, "the end of the process")
        return self.process.returncode

    def client(self, kind, name):
        client = self._node.create_client(kind, name)
        self.wait(client.service_is_ready, name)
        self.state()  # who answers a younger client has discovered this one: no answer is lost
        return client

    def call(self, kind, name, request):
        client = self.client(kind, name)
        future = client.call_async(request)
        self.wait(future.done, f"answer of {name}")
        self._node.destroy_client(client)
        return future.result()

    def change(self, transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        return self.call(ChangeState, "echo/change_state", request).success

    def state(self):
        client = self._node.create_client(GetState, "echo/get_state")
        self.wait(client.service_is_ready, "echo/get_state")
        futures = []

        def answered():
            futures.append(client.call_async(GetState.Request()))
            self._executor.spin_until_future_complete(futures[-1], timeout_sec=1.0)
            return any(future.done() for future in futures)

        self.wait(answered, "answer of echo/get_state")
        self._node.destroy_client(client)
        return next(future.result() for future in futures if future.done()).current_state.id

    def set(self, name, value):
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        (result,) = self.call(SetParameters, "echo/set_parameters", request).results
        return result

    def until_connected(self):
        self.wait(
            lambda: self.heard.get_subscription_count() and self._node.count_publishers("said"),
            "connection",
        )
        self.ask("are you there?")

    def ask(self, text):
        before = len(self.said)

        def answered():
            self.heard.publish(String(data=text))
            self._executor.spin_once(timeout_sec=0.2)
            return len(self.said) > before

        self.wait(answered, f"answer to {text}")
        return self.said[-1]

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
        self._log.close()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)


@pytest.fixture
def echo(tmp_path):
    made = []

    def make(*overrides):
        made.append(Echo(tmp_path, *overrides))
        return made[-1]

    yield make
    for each in made:
        each.close()


def steps(log):
    known = ("configure", "activate", "deactivate", "teardown")
    return [line for line in log.splitlines() if line in known]


def shared_memory(pid):
    """The files in which Fast DDS shares what a process sends, each by the lock that it holds."""
    locks = [fd.readlink() for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()]
    own = {path for path in locks if path.match("/dev/shm/fast*_el") and "port" not in path.name}
    assert own
    return {*own, *(path.with_name(path.name.removesuffix("_el")) for path in own)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_in_order_while_it_can_still_publish(echo, number):
    node = echo()
    node.until_connected()
    shared = shared_memory(node.process.pid)
    node.process.send_signal(number)
    node.wait(lambda: "bye" in node.said, "the last word")
    assert node.exit_code() == 0
    assert not [path for path in shared if path.exists()]
    assert steps(node.log()) == ["configure", "activate", "deactivate", "teardown"]
    # Python's search for cycles leaves out what was loaded, as long as it is there.
    assert "frozen at activate: True" in node.log()
    assert "frozen at teardown: False" in node.log()


@pytest.mark.parametrize("autostart", ["true", "false"])
def test_a_signal_while_models_are_loaded_ends_the_node_cleanly(echo, autostart):
    node = echo("weights:=slow", f"autostart:={autostart}")
    if autostart == "false":
        client = node.client(ChangeState, "echo/change_state")
        transition = Transition(id=Transition.TRANSITION_CONFIGURE)
        client.call_async(ChangeState.Request(transition=transition))
    node.wait(lambda: "configure" in node.log(), "configure")
    node.process.send_signal(signal.SIGTERM)
    assert node.exit_code() == 0  # it would be 1 if it had been ended by force
    assert "did not configure: the process is ending" in node.log()
    assert "Traceback" not in node.log()


def test_a_signal_while_a_model_computes_ends_the_node_cleanly(echo):
    node = echo()
    node.until_connected()
    node.ask("think")
    node.process.send_signal(signal.SIGINT)
    assert node.exit_code() == 0
    assert steps(node.log()) == ["configure", "activate", "deactivate", "teardown"]
    assert "ends with the process" in node.log()


def test_a_callback_that_hangs_does_not_keep_the_node_alive(echo):
    node = echo()
    node.until_connected()
    node.heard.publish(String(data="hang"))
    node.wait(lambda: node.state() == State.PRIMARY_STATE_ACTIVE, "state while hanging")
    node.wait(lambda: "hanging" in node.log(), "the hanging callback")
    node.process.send_signal(signal.SIGTERM)
    assert node.exit_code() == 1
    assert "not ended after 1.5 s" in node.log()
    assert "in hear" in node.log()  # where it hung


def test_a_defect_in_a_callback_ends_the_node_with_its_traceback(echo):
    node = echo()
    node.until_connected()
    node.heard.publish(String(data="defect"))
    assert node.exit_code() == 1
    assert "ZeroDivisionError: a defect" in node.log()
    assert steps(node.log())[-2:] == ["deactivate", "teardown"]


def test_an_unusable_message_is_counted_and_the_node_lives_on(echo):
    node = echo("diagnostics_period:=0.1")
    node.until_connected()
    node.heard.publish(String(data="nonsense"))
    node.wait(
        lambda: (
            node.status
            and ("heard: dropped", "1") in [(v.key, v.value) for v in node.status.values]
        ),
        "count",
    )
    assert node.status.level == b"\x01"
    assert node.ask("you") == "hello you"


def test_a_wrong_start_ends_an_autostarted_node_and_says_why(echo):
    node = echo("greting:=hi", "diagnostics_period:=0.0")
    assert node.exit_code() == 1
    assert "did you mean greeting?" in node.log()
    assert "diagnostics_period: expected at least 0.05 s, got 0.0" in node.log()
    assert steps(node.log()) == ["teardown"]


def test_a_failed_configure_can_be_corrected_and_tried_again(echo):
    node = echo("autostart:=false", "weights:=torn", "diagnostics_period:=0.1")
    assert not node.change(Transition.TRANSITION_CONFIGURE)
    assert node.state() == State.PRIMARY_STATE_UNCONFIGURED
    node.wait(
        lambda: node.status and node.status.message == "cannot configure: weights are torn",
        "stop reason",
    )
    assert node.status.level == b"\x02"
    assert "Traceback" in node.log()
    assert node.set("weights", "good").successful
    assert node.change(Transition.TRANSITION_CONFIGURE)
    refused = node.set("weights", "other")
    assert "fixed once the node is configured" in refused.reason
    assert node.change(Transition.TRANSITION_ACTIVATE)
    assert node.ask("you") == "hello you"


def test_parameters_set_while_models_are_loaded_are_refused_or_take_effect(echo):
    node = echo("weights:=large", "diagnostics_period:=0.1")
    node.wait(lambda: "configure" in node.log(), "configure")
    assert "fixed once the node is configured" in node.set("weights", "good").reason
    assert node.set("greeting", "good morning").successful  # what configure waits for
    node.until_connected()
    assert node.ask("you") == "good morning you"
    assert "changed good morning" in node.log()


def test_a_failed_activate_tears_the_node_down(echo):
    node = echo("autostart:=false", "greeting:=mute")
    assert node.change(Transition.TRANSITION_CONFIGURE)
    assert not node.change(Transition.TRANSITION_ACTIVATE)
    assert node.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert steps(node.log()) == ["configure", "activate", "teardown"]
    assert "cannot activate: cannot speak" in node.log()
    assert node.set("greeting", "hi").successful
    assert node.change(Transition.TRANSITION_CONFIGURE)
    assert node.change(Transition.TRANSITION_ACTIVATE)


def test_an_impossible_transition_is_refused_and_the_node_lives_on(echo):
    node = echo()
    node.until_connected()
    assert not node.change(Transition.TRANSITION_CONFIGURE)
    assert node.state() == State.PRIMARY_STATE_ACTIVE
    assert node.ask("you") == "hello you"


def test_an_inactive_node_is_silent(echo):
    node = echo()
    node.until_connected()
    assert node.change(Transition.TRANSITION_DEACTIVATE)
    count = len(node.said)
    for _ in range(5):
        node.heard.publish(String(data="you"))
        node.state()
    assert "hello you" not in node.said[count:]
    assert node.change(Transition.TRANSITION_ACTIVATE)
    assert node.ask("you") == "hello you"


def test_a_parameter_changes_what_a_running_node_does(echo):
    node = echo()
    node.until_connected()
    assert node.set("greeting", "good evening").successful
    node.wait(lambda: node.ask("you") == "good evening you", "new greeting")
    assert "changed good evening" in node.log()
