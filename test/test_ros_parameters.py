import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

import rclpy
from example_settings import Settings
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.parameter import Parameter

from vla_reasoner_ros import parameters as core
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.ros.parameters import NodeParameters, descriptor
from vla_reasoner_ros.search.parameters import SearchParameters

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "config").glob("*_node.yaml"))


class Node:
    """A node with Settings, and whether it counts as configured."""

    def __init__(self, *overrides):
        self.context = rclpy.Context()
        arguments = [word for override in overrides for word in ("-p", override)]
        rclpy.init(context=self.context)
        self.node = rclpy.create_node(
            "planner",
            context=self.context,
            cli_args=["--ros-args", *arguments] if arguments else None,
            automatically_declare_parameters_from_overrides=True,
        )
        self.configured = False
        self.applied = []
        self.refusal = ""
        self.parameters = NodeParameters(
            self.node, Settings, lambda: self.configured, self.check, self.applied.append
        )

    def set(self, **values):
        """What the service answers when all are set at once; names have __ for the dot."""
        changes = [Parameter(k.replace("__", "."), value=v) for k, v in values.items()]
        service = next(
            s for s in self.node.services if s.srv_name.endswith("/set_parameters_atomically")
        )
        request = SetParametersAtomically.Request(
            parameters=[change.to_parameter_msg() for change in changes]
        )
        return service.callback(request, SetParametersAtomically.Response()).result

    def check(self, settings):
        if self.refusal:
            raise ConfigurationError(f"{self.refusal}: {settings.search.simulations}")

    def close(self):
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def make_node():
    made = []

    def make(*overrides):
        made.append(Node(*overrides))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_descriptor_says_what_the_declaration_says():
    described = {d.name: descriptor(d) for d in core.declarations(Settings)}
    alpha = described["search.alpha"]
    assert alpha.description == "Injection strength."
    assert alpha.type == Parameter.Type.DOUBLE.value
    (extent,) = alpha.floating_point_range
    assert (extent.from_value, extent.to_value) == (0.0, 1.0)
    (extent,) = described["search.simulations"].integer_range
    assert (extent.from_value, extent.to_value) == (1, 1000)
    assert described["search.deadline"].description == "Deadline. [s]"
    assert described["search.deadline"].floating_point_range[0].to_value == float("inf")
    assert described["search.rule"].additional_constraints == "one of ucb, puct"
    assert described["policy"].additional_constraints == "fixed once the node is configured"
    assert described["weights"].type == Parameter.Type.DOUBLE_ARRAY.value


def test_defaults_are_on_the_node(make_node):
    node = make_node()
    assert node.parameters.value == Settings()
    node.parameters.require_valid()
    values = {d.name: node.node.get_parameter(d.name).value for d in core.declarations(Settings)}
    assert values["search.alpha"] == 0.6
    assert list(values["cameras"]) == ["agent"]
    assert list(values["weights"]) == []


def test_the_command_line_is_heard(make_node):
    node = make_node("search.alpha:=1", "cameras:=[a, b]", "weights:=[0.5, 0.5]")
    node.parameters.require_valid()
    assert node.parameters.value == core.build(
        Settings, {"search.alpha": 1.0, "cameras": ["a", "b"], "weights": [0.5, 0.5]}
    )


def test_what_is_wrong_from_the_start_is_all_said_when_asked(make_node):
    node = make_node("search.alfa:=0.5", "search.simulations:=0", "search.alpha:=0.25")
    with pytest.raises(ConfigurationError) as error:
        node.parameters.require_valid()
    assert "did you mean search.alpha?" in str(error.value)
    assert "search.simulations: expected at least 1, got 0" in str(error.value)
    assert node.parameters.value.search.alpha == 0.25


def test_a_wrong_start_can_be_corrected(make_node):
    node = make_node("search.simulations:=0")
    assert node.set(search__simulations=7).successful
    node.parameters.require_valid()
    assert node.parameters.value.search.simulations == 7


def test_what_the_node_itself_refuses_is_not_set(make_node):
    node = make_node()
    node.refusal = "too many for this model"
    result = node.set(search__simulations=9)
    assert (result.successful, result.reason) == (False, "too many for this model: 9")
    assert node.applied == []
    assert node.parameters.value.search.simulations == 50


def test_a_rule_across_parameters_is_said_too(make_node):
    node = make_node("weights:=[0.5, 0.5]")
    with pytest.raises(ConfigurationError, match="one per camera"):
        node.parameters.require_valid()


def test_a_change_is_applied_once_and_seen_as_a_snapshot(make_node):
    node = make_node()
    before = node.parameters.value
    assert node.set(search__alpha=0.1, search__simulations=9).successful
    (applied,) = node.applied
    assert applied is node.parameters.value
    assert (applied.search.alpha, applied.search.simulations) == (0.1, 9)
    assert before.search.alpha == 0.6


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"search__alpha": 0.1, "search__simulations": 0}, "search.simulations out of range"),
        ({"search__alpha": 0.1, "search__rule": "luck"}, "one of ucb, puct, got 'luck'"),
        ({"search__alpha": 0.1, "weights": [1.0, 2.0]}, "one per camera"),
        ({"search__alpha": 0.1, "search__alfa": 0.1}, "search.alfa (did you mean search.alpha?)"),
        ({"search__alpha": "much"}, "Wrong parameter type"),
        ({"search__alpha": float("nan")}, "nan"),
    ],
)
def test_a_bad_change_changes_nothing_and_says_why(make_node, values, reason):
    node = make_node()
    result = node.set(**values)
    assert not result.successful
    assert reason in result.reason
    assert node.parameters.value == Settings()
    assert node.node.get_parameter("search.alpha").value == 0.6
    assert node.applied == []


def test_a_whole_number_is_taken_for_a_float(make_node):
    node = make_node()
    assert node.set(search__alpha=1, weights=[2]).successful
    assert node.parameters.value.search.alpha == 1.0
    assert node.parameters.value.weights == (2.0,)


def test_what_is_fixed_is_fixed_once_the_node_is_configured(make_node):
    node = make_node()
    assert node.set(policy="other").successful
    node.configured = True
    result = node.set(policy="third", search__alpha=0.1)
    assert not result.successful
    assert "parameter policy: fixed once the node is configured" in result.reason
    assert node.parameters.value.search.alpha == 0.6
    assert node.set(policy="other", search__alpha=0.1).successful  # no change of it


def test_one_by_one_the_good_ones_are_taken(make_node):
    node = make_node()
    service = next(s for s in node.node.services if s.srv_name.endswith("/set_parameters"))
    request = SetParameters.Request(
        parameters=[
            Parameter("search.alpha", value=0.1).to_parameter_msg(),
            Parameter("search.simulations", value=0).to_parameter_msg(),
        ]
    )
    results = service.callback(request, SetParameters.Response()).results
    assert [result.successful for result in results] == [True, False]
    assert node.parameters.value.search.alpha == 0.1


# The shipped files.


def test_parameter_files_and_reference_page_are_what_the_code_declares():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "parameter_docs.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"run scripts/parameter_docs.py\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_parameter_file_gives_the_defaults(path):
    module = importlib.import_module(f"vla_reasoner_ros.nodes.{path.stem}")
    name = "".join(word.capitalize() for word in path.stem.split("_"))
    cls = getattr(module, name).parameters_class
    content = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]
    assert core.build(cls, core.dotted(content)) == cls()


def unfit(value, schema, name=""):
    """What of a value breaks a schema, in the few words that ours are made of."""
    kinds = {"boolean": bool, "integer": int, "number": (int, float), "string": str}
    if schema["type"] == "object":
        for key, item in value.items():
            if key not in schema["properties"]:
                yield f"{name}{key} is unknown"
            else:
                yield from unfit(item, schema["properties"][key], f"{name}{key}.")
    elif schema["type"] == "array":
        for item in value:
            yield from unfit(item, schema["items"], name)
    elif not isinstance(value, kinds[schema["type"]]):
        yield f"{name} is no {schema['type']}"
    elif value < schema.get("minimum", value) or value > schema.get("maximum", value):
        yield f"{name} is out of range"
    elif value not in schema.get("enum", [value]):
        yield f"{name} is no choice"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_parameter_file_fits_its_schema_and_a_wrong_one_does_not(path):
    schema = json.loads((path.parent / "schema" / f"{path.stem}.json").read_text())
    ((pattern, entry),) = schema["patternProperties"].items()
    for key in ("/**", path.stem, f"/{path.stem}", f"/left/{path.stem}"):
        assert re.match(pattern, key), key
    assert not re.match(pattern, "another_node")
    own = entry["properties"]["ros__parameters"]
    content = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]
    assert list(unfit(content, own)) == []
    assert list(unfit(content | {"diagnostics_period": 0.0}, own))
    assert list(unfit(content | {"autostat": True}, own))


def test_every_parameter_of_the_method_is_one_of_the_node():
    method = (
        "simulations deadline_ms wave selection exploration samples branching backup discount "
        "pessimism margin alpha gripper_rule gate.enabled drift.threshold reuse depth seed method"
    )
    known = {declaration.name for declaration in core.declarations(SearchParameters)}
    assert set(method.split()) <= known
