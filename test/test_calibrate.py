import dataclasses
import json

import numpy as np
import pytest
import recordings
import yaml

from vla_reasoner_ros import cli
from vla_reasoner_ros.components import ComponentParameters, load_components
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.errors import ModelError
from vla_reasoner_ros.evaluation import calibrate, done
from vla_reasoner_ros.evaluation.calibrate import parameter_file
from vla_reasoner_ros.evaluation.calibration_data import (
    BudgetPoint,
    Collector,
    Futures,
    Logs,
    Prediction,
)
from vla_reasoner_ros.evaluation.calibration_rules import Calibration, budget, gate, skill_of
from vla_reasoner_ros.evaluation.done import ValueSeries
from vla_reasoner_ros.evaluation.replay_settings import read_parameter_file
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.priors.kde import KdePrior
from vla_reasoner_ros.search.parameters import SearchParameters

LARGE = recordings.CONTRACT.replace("height: 24, width: 32", "height: 96, width: 96")


@pytest.fixture(scope="module")
def components():
    return load_components(ComponentParameters(world_model="latent"))


def logs_of(share, noise, count=300, step=0.05, seed=0, at_once=False):
    """Values that wander; of what is imagined at each depth a share comes true.

    Args:
        share: of imagined changes that come true, (4,) or one for all depths.
        noise: (4,) deviation of what is imagined at each depth from its share of the truth.
        count: moments, each of an episode of its own.
        step: deviation of the true change in one macro-action.
        seed: of all numbers.
        at_once: nothing changes after the first macro-action.
    """
    rng = np.random.default_rng(seed)
    predictions = []
    for episode in range(count):
        before = rng.normal(0.5, 0.1)
        steps = rng.normal(0.0, step, 4)
        seen = before + (np.full(4, steps[0]) if at_once else np.cumsum(steps))
        imagined = before + (seen - before) / share + rng.normal(0.0, noise)
        predictions += [
            Prediction(episode, 0.0, depth, before, imagined[depth - 1], seen[depth - 1], 0.01)
            for depth in (1, 2, 3, 4)
        ]
    looks = [(np.arange(20.0), rng.normal(0.5, 0.02, 20)) for _ in range(10)]
    return Logs(predictions=predictions, looks=looks)


EXACT = (0.0, 0.0, 0.0, 0.0)
NOTHING = (5.0, 5.0, 5.0, 5.0)


def advised(logs, components, confidence=0.7, prior_options=None, **changed):
    found = calibrate.calibrate(
        logs,
        components,
        SearchParameters(**changed),
        prior_options=prior_options,
        confidence=confidence,
    )
    return {advice.name: advice for advice in found.advice}, found


def skill(logs):
    return skill_of(logs.futures(), np.random.default_rng(0))


def test_the_share_of_imagined_gains_that_come_true_is_found():
    found = skill(logs_of(0.4, EXACT))
    assert found.slope == pytest.approx([0.4] * 4)
    assert found.correlation[3] == pytest.approx(1.0)
    noisy = skill(logs_of(1.0, (0.1,) * 4))
    low, high = noisy.interval(noisy.drawn)
    assert (low < noisy.correlation).all()
    assert (noisy.correlation < high).all()


def test_a_noisy_value_at_the_beginning_is_no_skill():
    rng = np.random.default_rng(0)
    before = rng.normal(0.5, 0.1, 400)
    later, imagined = rng.normal(0.5, 0.05, (2, 400, 4))
    assert np.corrcoef(imagined[:, 0] - before, later[:, 0] - before)[0, 1] > 0.7
    found = skill_of(Futures(np.arange(400), before, imagined, later), rng)
    low, high = found.interval(found.drawn)
    assert (low < 0.0).all()
    assert (high > 0.0).all()


def test_the_interval_counts_stretches_of_driving_not_moments():
    logs = logs_of(1.0, (0.2,) * 4, count=40)
    many = [
        dataclasses.replace(p, time=p.time + 2.0 * i) for p in logs.predictions for i in range(5)
    ]
    few, repeated = skill(logs), skill(Logs(predictions=many))
    assert repeated.n == 5 * few.n
    assert repeated.stretches == few.stretches == 40
    assert repeated.drawn[:, 0].std() == pytest.approx(few.drawn[:, 0].std(), rel=0.15)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("best", [1, 3, 4])
def test_the_depth_that_foretells_clearly_best_is_advised(components, best, seed):
    noise = [1.0] * 4
    noise[best - 1] = 0.02
    advice, _ = advised(logs_of(1.0, noise, seed=seed), components)
    assert advice["search.depth"].value == best


def test_depth_stays_where_no_other_is_clearly_better(components):
    advice, _ = advised(logs_of(1.0, (0.05,) * 4, at_once=True), components)
    assert advice["search.depth"].value is None
    assert "no other depth foretells clearly better" in advice["search.depth"].why


def test_of_equally_good_depths_the_shallowest_is_advised(components):
    logs = logs_of(1.0, (3.0, 0.05, 0.05, 3.0), at_once=True)
    advice, _ = advised(logs, components, depth=4)
    assert advice["search.depth"].value == 2


@pytest.mark.parametrize(
    ("share", "present", "lowest", "highest"), [(0.3, 0.2, 0.65, 0.75), (0.9, 0.8, 0.05, 0.15)]
)
def test_alpha_moves_to_what_clearly_comes_true(components, share, present, lowest, highest):
    logs = logs_of(share, (0.005,) * 4)
    advice, _ = advised(logs, components, alpha=present, depth=4)
    assert lowest <= advice["search.alpha"].value <= highest
    fitting, _ = advised(logs, components, alpha=round(1.0 - share, 2), depth=4)
    assert fitting["search.alpha"].value is None


def test_alpha_is_that_of_the_depth_in_use(components):
    shares, noise = np.array([1.0, 0.2, 1.0, 1.0]), np.array([0.05, 0.25, 0.05, 0.05])
    advice, _ = advised(logs_of(shares, noise, at_once=True), components, alpha=0.5)
    assert advice["search.depth"].value is None
    assert 0.8 < advice["search.alpha"].value < 0.95
    other, _ = advised(logs_of(shares, noise, at_once=True), components, alpha=0.5, depth=3)
    assert other["search.depth"].value is None
    assert other["search.alpha"].value is None


def margin_of(seen_of, components, **options):
    """Advice on a margin where imagined changes of both small and large size come true or not."""
    rng = np.random.default_rng(0)
    predictions = []
    for episode in range(400):
        change = rng.choice([0.004, 0.2]) * rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.5)
        seen = 0.5 + seen_of(change, rng)
        predictions += [
            Prediction(episode, 0.0, depth, 0.5, 0.5 + change, seen, 0.0) for depth in (1, 2, 3, 4)
        ]
    looks = [(np.arange(20.0), rng.normal(0.5, 0.05, 20)) for _ in range(10)]
    found = advised(Logs(predictions=predictions, looks=looks), components, **options)
    return found[0]["search.margin"]


def test_a_margin_is_advised_where_changes_within_the_noise_mean_nothing(components):
    lost = lambda change, rng: change if abs(change) > 0.05 else rng.normal(0.0, 0.1)  # noqa: E731
    margin = margin_of(lost, components)
    assert margin.value == pytest.approx(0.52 * 2**0.5 * 0.05, rel=0.25)
    assert "go the way seen ones do in" in margin.why
    assert margin_of(lost, components, confidence=0.9).value > margin.value
    assert margin_of(lost, components, margin=0.2).value is None
    right = margin_of(lambda change, rng: change, components)
    assert right.value is None
    assert "no clear difference" in right.why


def test_data_without_signal_change_nothing_and_say_so(components):
    found = [advised(logs_of(1.0, NOTHING, seed=seed), components) for seed in range(10)]
    assert all(calibration.parameters() == {} for _, calibration in found)
    for name in ("search.depth", "search.alpha", "search.margin"):
        honest = ["not enough data" in advice[name].why for advice, _ in found]
        assert sum(honest) >= 9, name  # one in forty may look like a signal


def test_too_few_data_recommend_nothing_and_say_how_many_there_are(components):
    advice, found = advised(logs_of(0.7, EXACT, count=12), components)
    assert found.parameters() == {}
    assert advice["search.depth"].why == (
        "not enough data: 12 moments from 12 stretches, 30 from 10 are needed"
    )
    for name in ("search.alpha", "search.margin", "search.simulations", "search.gate.enabled"):
        assert "not enough data" in advice[name].why, name
    assert "not enough data" in advice["bandwidth"].why
    assert "0 successes and 0 failures are known" in advice["task.success_value"].why
    assert calibrate.figure(found, 2).startswith(b"\x89PNG")


def test_neighbouring_moments_count_once_and_cut_off_futures_not_at_all():
    near = [
        Prediction(0, 0.4 * i, depth, 0.0, 0.0, 0.0, 0.0)
        for i in range(10)
        for depth in (1, 2, 3, 4)
        if i + depth < 10
    ]
    futures = Logs(predictions=near).futures()
    assert futures.imagined.shape == (2, 4)  # at 0 and 1.2 s; from 2.4 s on the end is near
    assert Logs().futures().seen.shape == (0, 4)


def test_the_noise_of_values_is_that_of_one_look():
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0.0, 100.0, 3000))
    looks = [(times, 0.01 * times + rng.normal(0.0, 0.03, 3000)), (np.zeros(1), np.zeros(1))]
    assert Logs(looks=looks).noise().std() == pytest.approx(0.03, rel=0.05)


# The gate.


def gated(gains, margin=0.0, trusted=True, count=120):
    rng = np.random.default_rng(0)
    slopes = rng.uniform(-0.1, 0.2, count)
    found = Calibration()
    gate(found, slopes, gains(slopes, rng), margin, trusted, np.full(60, 0.01), rng)
    return {a.name: a for a in found.advice}


def test_the_gate_is_advised_where_skipping_loses_nothing():
    advice = gated(lambda slopes, rng: np.where(slopes < 0.05, 0.3, 0.0))
    assert advice["search.gate.enabled"].value is True
    assert 0.04 <= advice["search.gate.skip_slope"].value <= 0.08
    below = gated(lambda slopes, rng: np.where(slopes < 0.05, 0.3, 0.02), margin=0.05)
    assert below["search.gate.enabled"].value is True


@pytest.mark.parametrize(
    "gains",
    [
        lambda slopes, rng: np.full(len(slopes), 0.3),
        lambda slopes, rng: rng.exponential(0.05, len(slopes)),
        lambda slopes, rng: np.zeros(len(slopes)),
    ],
    ids=["always pays", "has nothing to do with the slope", "never pays"],
)
def test_the_gate_is_left_alone_where_skipping_may_lose(gains):
    assert gated(gains)["search.gate.enabled"].value is None


def test_the_gate_is_left_alone_where_its_slope_is_not_known_to_come_true():
    pays = lambda slopes, rng: np.where(slopes < 0.05, 0.3, 0.0)  # noqa: E731
    assert "not enough data" in gated(pays, trusted=False)["search.gate.enabled"].why
    assert "not enough data" in gated(pays, count=20)["search.gate.enabled"].why


# The budget.


def budgeted(gains, times_ms, present):
    found = Calibration()
    points = [
        BudgetPoint(n, np.asarray(gain), 1.0, np.full(len(gain), time_ms))
        for (n, gain), time_ms in zip(gains.items(), times_ms, strict=True)
    ]
    budget(found, points, present, 400.0, np.random.default_rng(0))
    return found.advice[0]


def test_a_smaller_budget_is_advised_where_it_loses_nothing_a_larger_one_never():
    gains = np.random.default_rng(0).exponential(0.05, 60)
    tried = {16: 0.5 * gains, 32: gains, 64: gains, 128: 3.0 * gains}
    assert budgeted(tried, [10, 20, 40, 80], 64).value == 32
    assert budgeted(tried, [10, 20, 40, 80], 32).value is None
    assert budgeted(tried, [10, 20, 500, 800], 128).value == 32
    assert budgeted(tried, [500, 500, 500, 800], 64).value is None


def test_what_is_written_is_what_the_planner_loads(components, tmp_path):
    _, found = advised(logs_of(0.7, (1.0, 1.0, 0.01, 1.0)), components, alpha=0.9)
    assert set(found.parameters()) == {"search.depth", "search.alpha"}
    found.bandwidth = 0.5
    for path, content in parameter_file(found, tmp_path, "mixture", {}).items():
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


# The bandwidth.


def demonstrated(count=400, **options):
    """Macro-actions that a KDE with such options drew, each around a reference of its own."""
    rng = np.random.default_rng(0)
    prior = KdePrior(**options)
    own = np.zeros((count, 4, 7))
    own[..., :3] = rng.normal(0.0, 0.01, (count, 1, 3))
    drawn = prior.sample(own, 1, rng).actions[:, 0]
    return Logs(actions=list(zip(own, drawn, strict=True)))


NEAR = {"neighbours": 32, "bandwidth": 2.0}


@pytest.mark.parametrize(
    ("prior", "options", "calibrated"),
    [
        ("kde", NEAR, {"neighbours": 32, "bandwidth": 0.5}),
        (
            "mixture",
            {"weights": {"kde": 1.0, "primitives": 3.0}, "options": {"kde": NEAR}},
            {
                "weights": {"kde": 1.0, "primitives": 3.0},
                "options": {"kde": {"neighbours": 32, "bandwidth": 0.5}},
            },
        ),
    ],
    ids=["kde", "mixture"],
)
def test_the_bandwidth_is_compared_with_the_users_and_all_else_stays(
    components, tmp_path, prior, options, calibrated
):
    user = dataclasses.replace(components, names={"prior": prior})
    logs = demonstrated(neighbours=32, bandwidth=0.5)
    advice, found = advised(logs, user, prior_options=options)
    assert advice["bandwidth"].value == 0.5
    assert "against 2 " in advice["bandwidth"].why
    files = parameter_file(found, tmp_path, prior, options)
    assert yaml.safe_load(files[tmp_path / "prior.yaml"]) == calibrated


def test_a_bandwidth_of_the_users_own_that_fits_is_kept(components):
    user = dataclasses.replace(components, names={"prior": "kde"})
    logs = demonstrated(bandwidth=1.2)
    advice, found = advised(logs, user, prior_options={"bandwidth": 1.2})
    assert advice["bandwidth"].value is None
    assert 1.2 in found.curves["bandwidth"]["factor"]


def test_a_mixture_without_kernels_has_no_bandwidth(components):
    options = {"weights": {"gaussian": 1.0}}
    advice, _ = advised(demonstrated(), components, prior_options=options)
    assert advice["bandwidth"].why == "the prior has no kernels"


def test_the_usual_mixture_keeps_its_neighbours(components, tmp_path):
    _, found = advised(demonstrated(neighbours=256, bandwidth=0.25), components)
    files = parameter_file(found, tmp_path, "mixture", {})
    written = yaml.safe_load(files[tmp_path / "prior.yaml"])
    assert written == {"options": {"kde": {"neighbours": 256, "bandwidth": 0.25}}}


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
    # 1.4 - 0.4 is a little less than 1.0.
    grid = ValueSeries(np.arange(30) * 0.1, np.where(np.arange(30) < 4, 0.0, 1.0), None)
    assert done.stop_time(grid, 0.5, 1.0) == pytest.approx(1.4)
    unknown = ValueSeries(np.arange(4.0), np.full(4, np.nan), None)
    assert done.stop_time(unknown, 0.5, 1.0) is None


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


def test_recordings_that_end_with_success_are_said_to_overstate_what_is_missed():
    rng = np.random.default_rng(0)
    whole = [series(4.0 if i % 2 else 99.0, 0.05, rng) for i in range(60)]
    cut = [
        s
        if s.success_time is None
        else ValueSeries(s.times[s.times <= 4.4], s.values[s.times <= 4.4], s.success_time)
        for s in whole
    ]
    rule, why = done.recommend(whole)
    assert rule.missed.rate < 0.1
    assert "end within" not in why
    assert "30 of 30 successful recordings end within 1 s" in done.recommend(cut)[1]


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
