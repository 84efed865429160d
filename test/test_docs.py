import argparse
import importlib
import importlib.metadata
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from vla_reasoner_ros import plugins
from vla_reasoner_ros.cli import VERBS
from vla_reasoner_ros.components import ComponentParameters, load_components
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.queue import RejectionReason
from vla_reasoner_ros.data.contract import Actions, CameraStream, Gripper, JointStream, Moments
from vla_reasoner_ros.errors import ObservationError
from vla_reasoner_ros.evaluation.arms import RECIPES
from vla_reasoner_ros.parameters import declarations
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.sim.loop import LoopParameters
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.task_run import Ending, TaskParameters
from vla_reasoner_ros.types import ChunkSource, Observation

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PACKAGE = ROOT / "vla_reasoner_ros"


def names(pages):
    return [page.name for page in pages]


def text(page):
    return page.read_text(encoding="utf-8")


def code(page):
    """Every piece of code of a page: inline, and whole blocks."""
    blocks = re.findall(r"^ *```[a-z]*\n(.*?)^ *```", text(page), re.M | re.S)
    prose = re.sub(r"^ *```.*?^ *```", "", text(page), flags=re.M | re.S)
    return blocks + re.findall(r"`([^`]+)`", prose)


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text(page), re.M):
        kept = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(kept.replace(" ", "-"))
    return found


@cache
def parameters():
    known = {"use_sim_time"}
    for prefix, cls in (
        ("", ControlParameters),
        ("", LoopParameters),
        ("search.", SearchParameters),
        ("planner.", ComponentParameters),
        ("task.", TaskParameters),
        ("", Moments),
        ("joint_states.", JointStream),
        ("gripper.", Gripper),
        ("cameras.NAME.", CameraStream),
        ("actions.", Actions),
    ):
        known |= {declaration.name for declaration in declarations(cls, prefix)}
    return known


@cache
def sources(folder):
    return "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_verb_and_option_of_the_command_line_exists(page):
    lines = "\n".join(code(page)).replace("\\\n", " ")
    for line in re.findall(r"vla-reasoner ([^#|\n]+)", lines):
        words = line.split()
        if words[0] in ("VERB", "--help", "--version"):
            continue
        verb = next((w for w in (" ".join(words[:2]), words[0]) if w in VERBS), None)
        assert verb, f"vla-reasoner {line}: no such verb"
        module = importlib.import_module(VERBS[verb].module)
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        declared = set(parser._option_string_actions)
        for option in re.findall(r"(?<!\S)--[a-z-]+", line):
            assert option in declared | {"--help"}, f"vla-reasoner {verb}: no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_parameter_exists(page):
    groups = {name.split(".")[0] for name in parameters() if "." in name}
    pattern = rf"(?<![\w./])((?:{'|'.join(groups)})\.[a-z_.NAME]+[a-zA-Z_])\b"
    for piece in code(page):
        for name in re.findall(pattern, piece):
            prefix = any(known.startswith(f"{name}.") for known in parameters())
            module = (PACKAGE / f"{name.replace('.', '/')}").exists()
            path = name.endswith((".md", ".py", ".yaml", ".launch"))
            assert name in parameters() or prefix or module or path, f"no parameter {name}"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_launch_file_and_argument_exists(page):
    shared = [PACKAGE / "ros" / name for name in ("bringup.py", "arm_bringup.py")]
    bringup = "".join(path.read_text(encoding="utf-8") for path in shared)
    others = r"ros2 launch (?!vla_reasoner_ros\b)(?:.*\\\n)*.*"
    for block in (re.sub(others, "", block) for block in code(page)):
        for launch_file in re.findall(r"\b(\w+\.launch\.py)", block):
            assert (ROOT / "launch" / launch_file).is_file(), f"no launch file {launch_file}"
        for argument in re.findall(r"(?<![\w:/])(?<!-p )([a-z_]+):=", block):
            declared = re.search(rf'argument\(\s*"{argument}"', bringup + sources("launch"))
            assert declared, f"no launch argument {argument}"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_file_named_exists(page):
    folders = "action|config|launch|test|benchmark|scripts|docs|msg|srv|resource"
    pattern = rf"(?<![\w/.$~])((?:{folders})/[\w./-]+\w)"
    for piece in code(page):
        for path in re.findall(pattern, piece):
            assert (ROOT / path).exists(), f"no file {path}"


def rows(page, heading):
    """The cells of the first table below a heading."""
    section = text(ROOT / "docs" / page).split(f"## {heading}\n")[1]
    table = re.search(r"(?:^\|.*\n)+", section, re.M)[0].splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    assert found
    return found


def source_of(node):
    name = node.strip("`")
    if name == "every node":
        return sources("vla_reasoner_ros/ros")
    said = text(PACKAGE / "nodes" / f"{name}.py")
    parts = {
        "planner_node": ("tasks",),
        "arm_controller_node": (
            "output",
            "trajectory_outputs",
            "stream_outputs",
            "gripper_outputs",
        ),
        "deadman_node": ("deadman_outputs",),
    }.get(name, ())
    return said + "".join(text(PACKAGE / "ros" / f"{part}.py") for part in parts)


def test_every_topic_of_the_interfaces_is_in_its_node():
    listed = set()
    for node, _, topic, kind, _ in rows("interfaces.md", "Topics"):
        found = re.match(r"`([^`]+)`", topic)
        if found is None:
            continue  # said by the contract
        name = found[1].removeprefix("CAMERA")
        literal = [f'"{name}"', f'}}{name}"', f'{{topic}}{name.removeprefix("/image_raw")}"']
        assert any(text in source_of(node) for text in literal), f"{node} has no {topic}"
        assert kind.strip("`").split("/")[1] in source_of(node), f"{node} has no {kind}"
        listed.add((node.strip("`"), name))
    for node in ("planner_node", "arm_controller_node"):
        made = re.findall(r'"((?:~/)?[a-z_]+)", (?:qos|self\.guarded)', source_of(node))
        assert {(node, topic) for topic in made} <= listed, f"{node} has more topics"


def test_every_service_of_the_interfaces_is_in_its_node():
    listed = {
        (node.strip("`"), name.strip("`")) for node, name, _, _ in rows("interfaces.md", "Services")
    }
    for node in {node for node, _ in listed}:
        made = set(re.findall(r'"(~/[a-z_]+)"', source_of(node)))
        made -= set(re.findall(r"action `(~/[a-z_]+)`", text(ROOT / "docs" / "interfaces.md")))
        topics = {re.match(r"`?([^`]*)", row[2])[1] for row in rows("interfaces.md", "Topics")}
        assert {name for owner, name in listed if owner == node} == made - topics


def test_every_page_is_in_the_site():
    navigation = text(ROOT / "mkdocs.yml").split("\nnav:\n")[1]
    shown = re.findall(r": ([\w/]+\.md)$", navigation, re.M)
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(shown) == sorted(pages)


def test_every_ending_of_a_task_has_its_row():
    said = [row[0].strip("`") for row in rows("interfaces.md", "Tasks")]
    assert said == [ending.name for ending in Ending]


FAULTS = (
    *("NaN chunk", "wrong width", "jump at the seam", "late chunk", "no chunk", "duplicate stamp"),
    *("clock jump forward", "clock jump back", "camera frozen", "camera gone"),
    *("joint states gone", "joint states frozen", "planner exception", "planner hang"),
    *("planner SIGKILL", "controller SIGKILL", "sim rejects a command", "parameter set to NaN"),
    *("negative limit in a file", "e-stop during inference", "e-stop during motion"),
    *("reset while the cause persists", "two publishers on the command topic"),
    *("instruction changed mid-motion", "disk full for logs"),
)
"""What may go wrong while the arm moves, each of which has a test with real processes."""


def test_every_gate_has_its_row():
    said = {
        reason for row in rows("safety.md", "Gates") for reason in re.findall(r"`(\w+)`", row[0])
    }
    assert said == {reason.value for reason in RejectionReason}


def test_every_claim_of_safety_names_a_test_that_exists():
    tests = sources("test")
    cited = [row[1] for row in rows("safety.md", "Guarantees, and the test of each")]
    for cell in cited:
        found = re.findall(r"`(test_\w+)`", cell)
        assert found, f"no test in {cell!r}"
        for name in found:
            assert f"def {name}(" in tests, f"there is no test {name}"


def test_every_fault_of_safety_names_a_test_of_its_file():
    """Each table of faults stands under the name of the file that injects them."""
    page = text(ROOT / "docs" / "safety.md")
    section = page.split("## Faults, with real processes\n")[1].split("\n## ")[0]
    parts = re.findall(r"`(test/test_\w+\.py)`(.*?)((?:^\|[^\n]*\n)+)", section, re.M | re.S)
    assert len(parts) == 3
    for file, _, table in parts:
        tests = text(ROOT / file)
        for row in table.splitlines()[2:]:
            names = re.findall(r"`(test_\w+)`", row.strip("|").split("|")[-1])
            assert names, f"no test in {row!r}"
            for name in names:
                assert f"def {name}(" in tests, f"there is no test {name} in {file}"
    for fault in FAULTS:
        assert fault in section, f"no row for {fault!r}"


def quotations():
    """Page and messages that it says the code says; dots stand for what varies."""
    stops = [row[1] for row in rows("safety.md", "Stops")]
    page = text(ROOT / "docs" / "troubleshooting.md")
    found = [line.strip("|").split("|")[0] for line in page.splitlines() if line.startswith("| `")]
    return re.findall(r"`([^`]+)`", "".join([*stops, *found]))


@pytest.mark.parametrize("message", quotations())
def test_every_message_quoted_is_one_that_the_code_says(message):
    said = re.sub(r'"\s*\n\s*f?"', "", sources("vla_reasoner_ros"))
    said += (ROOT / "scripts" / "setup.sh").read_text(encoding="utf-8")
    for part in message.split("..."):
        assert part.strip() in said, f"nothing says {part.strip()!r}"


def test_arms_and_tasks_are_called_by_their_names():
    page = text(ROOT / "docs" / "train_and_evaluate.md")
    assert [name for name in RECIPES if f"`{name}`" not in page] == []
    assert [name for name in TASKS if f"`{name}`" not in page] == []


# The example of a policy, as a package of the user's own.

NETWORK = """
import numpy as np


def load_network(checkpoint):
    assert checkpoint.endswith(".safetensors")

    def network(images, state, instruction):
        assert [image.shape for image in images] == [(224, 224, 3)] * 2
        answer = np.zeros((8, 7))
        answer[:, 0], answer[:, 6] = 1.0, -0.3
        return answer

    return network
"""


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    page = text(ROOT / "docs" / "your_own_vla.md")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "network.py").write_text(NETWORK)
    example = re.search(r"```python\n(.*?)```", page, re.S)[1]
    (tmp_path / "my_package" / "my_vla.py").write_text(example)
    entry = re.search(r"```toml\n\[project\.entry-points\.\"(.*?)\"\]\n(.*?)```", page, re.S)
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: my-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2].replace(chr(34), '')}")
    monkeypatch.syspath_prepend(tmp_path)
    yield re.search(r"```yaml\n(checkpoint.*?)```", page, re.S)[1]
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


def seen(**changes):
    fields = {
        "stamp_ns": 5,
        "images": {name: np.zeros((224, 224, 3), np.uint8) for name in ("agent", "wrist")},
        "joint_names": (),
        "joint_positions": np.zeros(0),
        "joint_velocities": np.zeros(0),
        "ee_position": np.array([0.4, 0.0, 0.3]),
        "ee_quaternion": np.array([1.0, 0.0, 0.0, 0.0]),
        "gripper": 1.0,
        "instruction": "pick up the cup",
    }
    return Observation(**fields | changes)


def test_the_example_of_a_policy_is_found_by_name_and_drives(my_package, tmp_path):
    options = tmp_path / "my_vla.yaml"
    options.write_text(my_package)
    components = load_components(
        ComponentParameters(policy="my_vla", policy_options=str(options), world_model="none")
    )
    reasoner = Reasoner(components.policy, None, None, None)
    chunk = reasoner.decide(seen()).chunk
    assert chunk.source is ChunkSource.POLICY
    np.testing.assert_allclose(chunk.actions[0], [0.02, 0, 0, 0, 0, 0, -1.0], atol=1e-12)
    with pytest.raises(ObservationError, match="camera 'agent'"):
        components.policy.propose(seen(images={}))


def test_the_example_of_a_prior_has_the_convention_of_the_example_of_a_policy(my_package):
    page = text(ROOT / "docs" / "your_own_vla.md")
    options = yaml.safe_load(re.search(r"```yaml\n(# .*?spec:.*?)```", page, re.S)[1])
    prior = plugins.create("prior", "gaussian", options)
    policy = plugins.load("policy", "my_vla")
    policy.spec.action.require_same(prior.spec, "policy", "prior")
