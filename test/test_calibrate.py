import json

import numpy as np
import pytest
import recordings

from vla_reasoner_ros import cli
from vla_reasoner_ros.components import ComponentParameters, load_components
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.errors import ModelError
from vla_reasoner_ros.evaluation import calibrate, done
from vla_reasoner_ros.evaluation.calibrate import Calibration, parameter_file, skill_of
from vla_reasoner_ros.evaluation.calibration_data import BudgetPoint, Collector, Logs, Prediction
from vla_reasoner_ros.evaluation.done import ValueSeries
from vla_reasoner_ros.evaluation.replay_settings import read_parameter_file
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.search.parameters import SearchParameters

LARGE = recordings.CONTRACT.replace("height: 24, width: 32", "height: 96, width: 96")


@pytest.fixture(scope="module")
def components():
    return load_components(ComponentParameters(world_model="latent"))


def logs_of(slope, noise, count=300, moments=0, seed=0):
    """Imagined changes of which a share comes true, the more noise the deeper."""
    rng = np.random.default_rng(seed)
    predictions = []
    for index in range(count):
        for depth in (1, 2, 3, 4):
            imagined = rng.normal(0.0, 0.05)
            seen = slope * imagined + rng.normal(0.0, noise * depth**3)
            predictions.append(Prediction(index, 0.0, depth, 0.5, 0.5 + imagined, 0.5 + seen, 0.01))
    return Logs(predictions=predictions)


def advised(logs, components, **options):
    found = calibrate.calibrate(logs, components, SearchParameters(), **options)
    return {advice.name: advice for advice in found.advice}, found


def test_the_share_of_imagined_gains_that_come_true_is_found():
    rng = np.random.default_rng(1)
    imagined = rng.normal(size=400)
    skill = skill_of(imagined, 0.4 * imagined + rng.normal(size=400) * 0.2, rng)
    assert skill.slope == pytest.approx(0.4, abs=0.05)
    assert skill.residual == pytest.approx(0.2, abs=0.03)
    assert skill.low < skill.correlation < skill.high
    assert skill_of(np.zeros(50), imagined[:50], rng).low == -1.0


def test_a_model_that_foretells_gets_its_share_and_its_depth(components):
    advice, _ = advised(logs_of(0.7, 0.005), components)
    assert advice["search.alpha"].value == pytest.approx(0.3, abs=0.06)
    assert advice["search.depth"].value >= 2
    shallow, _ = advised(logs_of(0.7, 0.1), components)
    assert shallow["search.depth"].value == 1
    noisier, _ = advised(logs_of(0.7, 0.15), components)
    assert noisier["search.margin"].value > shallow["search.margin"].value
    careful, _ = advised(logs_of(0.7, 0.1), components, confidence=0.95)
    assert careful["search.margin"].value > shallow["search.margin"].value
    assert advised(logs_of(0.7, 0.1), components, confidence=0.5)[0]["search.margin"].value == 0.0


def test_a_model_that_foretells_nothing_leaves_the_policy_alone(components):
    advice, found = advised(logs_of(0.0, 0.05), components)
    assert advice["search.alpha"].value == 1.0
    assert "does not foretell" in advice["search.alpha"].why
    assert found.parameters() == {"search.alpha": 1.0}


def test_too_few_data_recommend_nothing_and_say_how_many_there_are(components):
    advice, found = advised(logs_of(0.7, 0.005, count=12), components)
    assert found.parameters() == {}
    assert advice["search.depth"].why == "not enough data: 12 independent moments, 30 are needed"
    for name in ("search.alpha", "search.margin", "search.simulations", "bandwidth"):
        assert "not enough data" in advice[name].why, name
    assert "0 successes and 0 failures are known" in advice["task.success_value"].why
    assert calibrate.figure(found).startswith(b"\x89PNG")


def test_neighbouring_moments_count_once():
    near = [Prediction(0, 0.4 * i, 1, 0.0, 0.0, 0.0, 0.0) for i in range(10)]
    assert [p.time for p in Logs(predictions=near).at_depth(1)] == pytest.approx(
        [0.0, 1.2, 2.4, 3.6]
    )


def test_the_gate_opens_only_where_searching_pays():
    rng = np.random.default_rng(0)
    slopes = rng.uniform(-0.1, 0.2, 60)
    pays = BudgetPoint(64, np.where(slopes < 0.05, 0.3, 0.0), 1.0, np.ones(60))
    logs = Logs(moments=[None] * 60, own_gains=slopes.tolist())
    found = Calibration()
    calibrate._gate(found, logs, [pays], margin=0.1)
    advice = {a.name: a.value for a in found.advice}
    assert advice["search.gate.enabled"] is True
    assert 0.0 <= advice["search.gate.skip_slope"] <= 0.06
    found = Calibration()
    always = BudgetPoint(64, np.full(60, 0.3), 1.0, np.ones(60))
    calibrate._gate(found, logs, [always], margin=0.1)
    assert found.parameters() == {"search.gate.enabled": False}


def test_what_is_written_is_what_the_planner_loads(components, tmp_path):
    _, found = advised(logs_of(0.7, 0.005), components)
    found.bandwidth = 0.5
    for path, content in parameter_file(found, tmp_path, "mixture").items():
        path.write_bytes(content)
    values = read_parameter_file(tmp_path / "calibrated.yaml")
    search = {name: v for name, v in values.items() if name.startswith("search.")}
    parameters = build(SearchParameters, search, "search.")
    assert parameters.depth == found.parameters()["search.depth"]
    assert parameters.alpha == found.parameters()["search.alpha"]
    again = load_components(
        ComponentParameters(world_model="latent", prior_options=values["planner.prior_options"])
    )
    assert again.prior.name == "mixture"


# The stop rule.


def series(rises_at, noise, rng, length=10.0):
    times = np.arange(0.0, length, 0.4)
    values = np.where(times >= rises_at, 0.9, 0.3) + rng.normal(0.0, noise, len(times))
    return ValueSeries(times, values, None if rises_at > length else rises_at)


def test_a_rule_stops_when_the_value_has_stayed_high():
    rng = np.random.default_rng(0)
    rising = series(5.2, 0.0, rng)
    assert done.stop_time(rising, 0.6, 0.0) == pytest.approx(5.2)
    assert done.stop_time(rising, 0.6, 1.0) == pytest.approx(6.4)
    assert done.stop_time(rising, 0.95, 0.0) is None
    peak = ValueSeries(np.arange(4.0), np.array([0.0, 1.0, 0.0, 1.0]), None)
    assert done.stop_time(peak, 0.5, 1.0) is None


def test_errors_of_a_rule_are_counted():
    rng = np.random.default_rng(0)
    episodes = [series(4.0, 0.0, rng), series(99.0, 0.0, rng)]
    right = done.judge(episodes, 0.6, 0.0)
    assert (right.false_stops.successes, right.missed.successes) == (0, 0)
    hasty = done.judge(episodes, 0.2, 0.0)
    assert hasty.false_stops.successes == 2
    deaf = done.judge(episodes, 0.99, 0.0)
    assert (deaf.missed.successes, deaf.missed.n) == (1, 1)


def test_a_recommended_rule_is_judged_on_episodes_it_was_not_chosen_on():
    rng = np.random.default_rng(0)
    episodes = [series(4.0 if i % 2 else 99.0, 0.1, rng) for i in range(60)]
    rule, why = done.recommend(episodes)
    assert 0.35 < rule.threshold < 0.9
    assert rule.false_stops.n == 60
    assert rule.false_stops.rate <= 0.1
    assert "not chosen on" in why
    blind = [ValueSeries(np.arange(5.0), rng.random(5), 3.0 if i % 2 else None) for i in range(60)]
    rule, why = done.recommend(blind)
    assert rule is None or rule.missed.rate > 0.5
    assert done.recommend(episodes[:8])[0] is None


# From bags.


def test_bags_give_what_was_imagined_and_what_was_seen(components, tmp_path):
    bag = recordings.record(tmp_path / "bag", recordings.events(3.0))
    collector = Collector(components, executed=4)
    with BagReader(bag) as reader:
        collector.read(reader, recordings.contract(LARGE), kinematics=recordings.KINEMATICS)
    logs = collector.logs
    assert len(logs.moments) == len(logs.own_gains) == 8
    assert {p.depth for p in logs.predictions} == {1, 2, 3, 4}
    assert sum(p.depth == 1 for p in logs.predictions) == 7
    values = {round(p.time, 3): p.before for p in logs.predictions}
    for prediction in logs.predictions:
        later = round(prediction.time + 0.4 * prediction.depth, 3)
        if later in values:
            assert prediction.seen == values[later]
    assert len(logs.actions) == 7
    assert logs.series == []


def test_without_a_world_model_there_is_nothing_to_calibrate():
    with pytest.raises(ModelError, match="there is no world model"):
        Collector(load_components(ComponentParameters(world_model="none")), 4)


def test_the_verb_writes_parameters_and_curves(tmp_path, capsys):
    assert load_contract("sim").moments.reference == "agent"
    bag = recordings.record(tmp_path / "bag")
    out = tmp_path / "out"
    contract = tmp_path / "contract.yaml"
    contract.write_text(LARGE)
    words = ["calibrate", str(bag), "--contract", str(contract), "--out", str(out)]
    assert cli.main([*words, "--set", "planner.world_model=latent"]) == 0
    assert "not enough data" in capsys.readouterr().out
    told = json.loads((out / "calibration.json").read_text())
    assert all(advice["value"] is None for advice in told["advice"])
    assert (out / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert read_parameter_file(out / "calibrated.yaml") == {}
    assert cli.main([*words, "--confidence", "0.2"]) == cli.EXIT_ERROR
