import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vla_reasoner_ros import cli, recipe
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.paths import MODELS_VARIABLE, share_directory
from vla_reasoner_ros.recipe import DONE, KILLED, Entry, Ledger, Run, load_recipe, time_left

RECIPES = sorted(path.stem for path in (share_directory() / "config" / "recipes").glob("*.yaml"))
TWO = """
steps:
  - {name: first, run: "demo-data --jobs 1 --expert 2 --limit 2 --out {work}/a", minutes: 2}
  - {name: second, run: "demo-data --jobs 1 --expert 12 --limit 2 --out {work}/b", minutes: 4}
"""


@pytest.fixture
def two(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(TWO)
    return path


def spent(step, seconds, done=False):
    run = Run("2026-01-01T00:00:00Z", 2, seconds, DONE if done else KILLED)
    return Entry(step.key, "vla-reasoner", done, runs=[run])


def parsed(step):
    name, rest = cli._find(list(step.command))
    parser = argparse.ArgumentParser()
    importlib.import_module(cli.VERBS[name].module).add_arguments(parser)
    return parser.parse_args(rest)


@pytest.mark.parametrize("name", RECIPES)
def test_every_step_is_a_verb_that_takes_its_options(name):
    for step in load_recipe(name, Path("work"), Path("models")):
        assert parsed(step)


def test_the_shipped_recipe_makes_every_shipped_model():
    verbs = {" ".join(s.command[:2]) for s in load_recipe("shipped", Path("w"), Path("m"))}
    assert {f"train {kind}" for kind in ("policy", "prior", "encoder", "world-model", "value")} <= (
        verbs
    )
    assert "report-card" in {v.split()[0] for v in verbs}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps: []", "expected a list of steps"),
        ("[1, 2]", "expected a list of steps"),
        ("steps: [{name: a}]", "step 1: expected name, run"),
        ("steps: [{name: a, run: b, hours: 3}]", "step 1: expected name, run"),
        ("steps: [{name: a, run: 'b {folder}'}]", "not a command: KeyError"),
        ("steps: [{name: a, run: b}, {name: a, run: c}]", "the step a stands twice"),
        ("steps: [", "not readable as YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, expected):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=expected):
        load_recipe(str(path), tmp_path, tmp_path)


def test_an_unknown_recipe_names_the_known_ones(tmp_path):
    with pytest.raises(ConfigurationError, match="known are shipped, tiny"):
        load_recipe("shiped", tmp_path, tmp_path)


def test_the_shipped_models_and_those_of_others_are_not_overwritten(tmp_path):
    ledger = tmp_path / recipe.LEDGER
    with pytest.raises(ConfigurationError, match="the shipped models stay"):
        Ledger.open(ledger, share_directory() / "resource" / "models")
    models = tmp_path / "models"
    models.mkdir()
    (models / "small_vla.safetensors").touch()
    with pytest.raises(ConfigurationError, match="expected an empty folder"):
        Ledger.open(ledger, models)
    Ledger(ledger, str(models.resolve())).write([])
    assert Ledger.open(ledger, models).entries == {}
    with pytest.raises(ConfigurationError, match="name that folder"):
        Ledger.open(ledger, tmp_path / "others")


def test_a_changed_step_and_all_after_it_are_done_again(two, tmp_path):
    steps = load_recipe(str(two), tmp_path, tmp_path / "models")
    ledger = Ledger(tmp_path / recipe.LEDGER, str(tmp_path / "models"))
    ledger.entries = {step.name: spent(step, 60.0, done=True) for step in steps}
    ledger.write(steps)
    ledger = Ledger.open(ledger.path, tmp_path / "models")
    assert [ledger.is_done(step) for step in steps] == [True, True]
    two.write_text(TWO.replace("--expert 12", "--expert 40"))
    changed = load_recipe(str(two), tmp_path, tmp_path / "models")
    assert [ledger.is_done(step) for step in changed] == [True, False]
    two.write_text(TWO.replace("--expert 2 ", "--expert 3 "))
    changed = load_recipe(str(two), tmp_path, tmp_path / "models")
    assert [ledger.is_done(step) for step in changed] == [False, False]


def test_what_a_changed_step_had_made_is_set_aside(two, tmp_path):
    work = tmp_path / "work"
    steps = load_recipe(str(two), work, work / "models")
    assert [step.makes for step in steps] == [(work / "a",), (work / "b",)]
    (work / "b").mkdir(parents=True)
    (work / "b" / "old").touch()
    recipe.set_aside(steps[1], work)
    assert not (work / "b").exists()
    assert len(list((work / recipe.REPLACED).glob("*/b/old"))) == 1
    recipe.set_aside(steps[1], work)


def test_all_that_a_changed_evaluation_had_written_is_set_aside(two, tmp_path):
    two.write_text('steps: [{name: loop, run: "evaluate --json {work}/results/loop.json"}]')
    (step,) = load_recipe(str(two), tmp_path, tmp_path / "models")
    results = tmp_path / "results"
    results.mkdir()
    # An interrupted one has not come to its results.
    for name in ("loop.episodes.jsonl", "loop.md", "loop.success.svg", "loop2.json"):
        (results / name).touch()
    recipe.set_aside(step, tmp_path)
    assert [path.name for path in results.iterdir()] == ["loop2.json"]
    assert len(list((tmp_path / recipe.REPLACED).glob("*/results/loop.*"))) == 3


def test_models_are_kept_as_they_were_before_the_first_changed_step(two, tmp_path, monkeypatch):
    models = tmp_path / "models"
    monkeypatch.setattr(
        recipe, "_run", lambda step, *_: (models / "net.json").write_text(step.key) and 0
    )
    ledger = Ledger(tmp_path / recipe.LEDGER, str(models))
    before = load_recipe(str(two), tmp_path, models)
    recipe.run_steps(before, ledger, 0)
    assert not (tmp_path / recipe.REPLACED).exists()
    two.write_text(TWO.replace("--expert 2 ", "--expert 3 "))
    recipe.run_steps(load_recipe(str(two), tmp_path, models), ledger, 0)
    (kept,) = (tmp_path / recipe.REPLACED).glob("*/models/net.json")
    assert kept.read_text() == before[-1].key != (models / "net.json").read_text()


def test_a_step_makes_what_no_step_before_it_names():
    work = Path("work")
    makes = {step.name: step.makes for step in load_recipe("shipped", work, work / "models")}
    assert makes["policy"] == (work / "training" / "policy",)
    assert makes["decisions of the expert"] == (work / "branches_expert",)
    assert makes["decisions of the policy"] == (work / "branches_policy",)
    assert work / "branches_expert" / "held_out" not in makes["report card"]
    assert all(work / "models" not in made for made in makes.values())


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_step_writes_no_step_before_it_names(name):
    """Else its old files would stay when it changes."""
    work = Path("work")
    for step in load_recipe(name, work, work / "models"):
        given = vars(parsed(step))
        verb = step.command[0]
        written = {"demo-data": "out", "branches": "output", "evaluate": "json", "train": "work"}
        if verb in written and f"--{written[verb]}" in step.command:
            assert given[written[verb]] in step.makes, step.name


def test_the_time_left_follows_the_speed_of_this_machine(two, tmp_path):
    steps = load_recipe(str(two), tmp_path, tmp_path / "models")
    ledger = Ledger(tmp_path / recipe.LEDGER, "models")
    assert time_left(steps, ledger) == pytest.approx(6 * 60.0)
    ledger.entries["first"] = spent(steps[0], 5 * 60.0, done=True)
    assert time_left(steps, ledger) == pytest.approx(4 * 60.0 * (6 / 3))
    ledger.entries["second"] = spent(steps[1], 60.0)
    assert time_left(steps, ledger) == pytest.approx(7 * 60.0)


def test_a_second_recipe_waits_outside(two, tmp_path):
    with (
        recipe.locked(tmp_path),
        pytest.raises(ConfigurationError, match="another recipe is at work"),
        recipe.locked(tmp_path, wait_s=0.2),
    ):
        pass


def test_a_recipe_waits_for_the_step_of_a_killed_one_to_end(tmp_path):
    with recipe.locked(tmp_path) as lock:
        # A step that goes on for a moment after its recipe, as it holds the lock as well.
        step = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1, pass_fds=(lock,))
    with (
        pytest.raises(ConfigurationError, match="another recipe is at work"),
        recipe.locked(tmp_path, wait_s=0.2),
    ):
        pass
    step.communicate(b"\n", timeout=60)
    with recipe.locked(tmp_path, wait_s=0.0):
        pass


def test_a_failed_step_is_named_and_ends_the_recipe(two, tmp_path, capfd):
    two.write_text(TWO.replace("--limit 2 --out {work}/b", "--first-seed 3 --out {work}/b"))
    two.write_text(two.read_text().replace("--jobs 1 --expert 2 --limit 2", "--expert 0"))
    assert cli.main(["recipe", str(two), "--work", str(tmp_path / "w")]) == 2
    assert "step first failed with exit code 2" in capfd.readouterr().err
    assert not (tmp_path / "w" / "b").exists()


@pytest.mark.timeout(600)
def test_a_recipe_killed_at_any_moment_goes_on_where_it_was(two, tmp_path):
    work = tmp_path / "work"
    command = [sys.executable, "-m", "vla_reasoner_ros.cli", "recipe", str(two), "--work", work]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    files = work / "b"
    give_up = time.monotonic() + 120.0
    while not list(files.glob("expert*")) and time.monotonic() < give_up:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ledger = json.loads((work / recipe.LEDGER).read_text())
    assert ledger["steps"]["first"]["done"]
    before = {path: path.stat().st_mtime_ns for path in (work / "a").iterdir()}

    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert "1/2 first: done before" in ended.stderr
    assert {path: path.stat().st_mtime_ns for path in (work / "a").iterdir()} == before
    assert len(list(files.glob("expert*.safetensors"))) == 12
    ledger = json.loads((work / recipe.LEDGER).read_text())
    assert ledger["steps"]["second"]["done"]
    log = [json.loads(line) for line in (work / recipe.LOG).read_text().splitlines()]
    assert [(row["step"], row["outcome"]) for row in log] == [
        ("first", DONE), ("second", KILLED), ("second", DONE),
    ]  # fmt: skip
    assert all(row["command"].startswith("vla-reasoner demo-data") for row in log)
    assert all(row["cores"] >= 1 and row["started"] < "3" for row in log)
    assert log[2]["seconds"] > 0.0
    table = (work / recipe.TABLE).read_text()
    assert table.count("| done 2") == 2
    assert f"Times on {len(os.sched_getaffinity(0))} CPU cores." in table


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_with_next_to_nothing_of_everything_the_steps_fit_together(tmp_path, monkeypatch):
    models = tmp_path / "models"
    models.mkdir()
    monkeypatch.setenv(MODELS_VARIABLE, str(models))
    steps = load_recipe("tiny", tmp_path, models)
    for step in steps[: [step.name for step in steps].index("value") + 1]:
        assert cli.main(step.command) == 0, step.name
    shipped = {path.name for path in (share_directory() / "resource" / "models").iterdir()}
    assert {path.name for path in models.iterdir()} == shipped - {"report_card.json"}
