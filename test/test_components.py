import json

import pytest

from vla_reasoner_ros.components import ComponentParameters, load_components, world_model_verdict
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.paths import MODELS_VARIABLE, models_directory


def card(folder, content):
    path = folder / "report_card.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def judged(passed, failures=(), digest="a"):
    """A card about weights of this digest."""
    entry = {"passed": passed, "failures": list(failures), "weights": {"latent_dynamics": digest}}
    return {"world_models": {"latent": entry}}


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "latent_dynamics.json").write_text('{"tensors_sha256": "a"}')
    return tmp_path


def test_a_green_card_lets_the_model_drive(weights):
    assert world_model_verdict("latent", card(weights, judged(True))).passed


def test_a_green_card_of_other_weights_does_not(weights):
    verdict = world_model_verdict("latent", card(weights, judged(True, digest="b")))
    assert not verdict.passed
    assert "judged other weights of latent_dynamics" in verdict.reason


def test_the_shipped_card_is_about_the_shipped_weights():
    assert "other weights" not in world_model_verdict().reason


def test_a_red_card_says_why_not(weights):
    failures = ["rank correlation: 0.120, expected at least 0.5"]
    verdict = world_model_verdict("latent", card(weights, judged(False, failures)))
    assert not verdict.passed
    assert failures[0] in verdict.reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "there is no report card"), ({"world_models": {}}, "says nothing of 'latent'")],
)
def test_a_model_without_a_card_does_not_drive(content, reason, tmp_path):
    path = tmp_path / "report_card.json" if content is None else card(tmp_path, content)
    verdict = world_model_verdict("latent", path)
    assert not verdict.passed
    assert reason in verdict.reason


@pytest.mark.parametrize("content", ["{", "[]", '{"world_models": 3}', "{}"])
def test_a_file_that_is_no_card_is_refused(content, tmp_path):
    with pytest.raises(ConfigurationError, match="not a report card"):
        world_model_verdict("latent", card(tmp_path, content))


def test_without_a_world_model_only_the_policy_is_loaded():
    components = load_components(ComponentParameters(world_model="none", value="nonsense"))
    assert components.world_model is None
    assert components.names == {"policy": "small_vla"}
    assert "no world model" in components.reason


def test_auto_follows_the_report_card(monkeypatch):
    monkeypatch.setattr(
        "vla_reasoner_ros.components.world_model_verdict",
        lambda: type("Red", (), {"passed": False, "reason": "it is red"}),
    )
    components = load_components(ComponentParameters(world_model="auto"))
    assert components.world_model is None
    assert components.reason == "it is red"


def test_all_components_fit_one_another():
    components = load_components(ComponentParameters(world_model="latent"))
    assert components.names == {
        "policy": "small_vla",
        "world_model": "latent",
        "value": "progress",
        "prior": "mixture",
    }
    assert components.reason == ""


def test_an_option_that_a_component_does_not_take_is_named(tmp_path):
    options = tmp_path / "options.yaml"
    options.write_text("wieghts: here\n")
    parameters = ComponentParameters(policy_options=str(options), world_model="none")
    with pytest.raises(ConfigurationError, match="no option 'wieghts'"):
        load_components(parameters)


def test_weights_come_from_the_folder_that_the_user_names(tmp_path, monkeypatch):
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path))
    assert models_directory() == tmp_path
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        load_components(ComponentParameters(world_model="none"))
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="there is no folder"):
        models_directory()
