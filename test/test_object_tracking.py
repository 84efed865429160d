import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.world_models.encoder import LatentLayout
from vla_reasoner_ros.world_models.tracking import ObjectTracker, TrackerParameters

LAYOUT = LatentLayout()
RED = 0
STEP = 400_000_000
HAND = (0.5, 0.0, 0.3)


def latent(red, error, hand=HAND, held=0.0):
    """A latent in which the red block was seen at ``red`` with an expected ``error``."""
    vector = torch.zeros(LAYOUT.width)
    LAYOUT.get(vector, "ee_position")[:] = torch.tensor(hand)
    LAYOUT.get(vector, "object_position")[:] = torch.tensor([0.6, 0.2, 0.02])
    LAYOUT.get(vector, "object_position")[RED] = torch.tensor(red)
    LAYOUT.get(vector, "object_error")[:] = 0.002
    LAYOUT.get(vector, "object_error")[RED] = error
    LAYOUT.get(vector, "block_held")[RED] = held
    return vector


def red_of(vector):
    return LAYOUT.get(vector, "object_position")[RED]


@pytest.fixture
def tracker():
    tracker = ObjectTracker(LAYOUT)
    tracker.update(latent((0.5, 0.1, 0.02), 0.002), STEP)
    return tracker


def test_the_first_observation_is_taken_as_it_is():
    seen = latent((0.5, 0.1, 0.02), 0.05)
    assert torch.equal(ObjectTracker(LAYOUT).update(seen, STEP), seen)


def test_a_hidden_object_stays_where_it_was_seen_last(tracker):
    found = tracker.update(latent((0.42, 0.05, 0.02), 0.05), 2 * STEP)
    assert (red_of(found) - torch.tensor([0.5, 0.1, 0.02])).norm() < 0.001
    assert LAYOUT.get(found, "object_error")[RED] < 0.004


def test_a_held_object_goes_with_the_hand():
    tracker = ObjectTracker(LAYOUT)
    tracker.update(latent((0.5, 0.0, 0.3), 0.002, held=1.0), STEP)
    found = tracker.update(
        latent((0.4, 0.1, 0.1), 0.09, hand=(0.53, 0.02, 0.33), held=1.0), 2 * STEP
    )
    assert (red_of(found) - torch.tensor([0.53, 0.02, 0.33])).norm() < 0.015


def test_an_object_that_somebody_moved_is_seen_at_once(tracker):
    found = tracker.update(latent((0.45, -0.1, 0.02), 0.003), 2 * STEP)
    assert torch.equal(red_of(found), torch.tensor([0.45, -0.1, 0.02]))


@pytest.mark.parametrize("stamp", [STEP, 0, STEP + round(TrackerParameters().forget * 1e9) + 1])
def test_an_old_a_repeated_and_a_much_later_observation_begin_anew(tracker, stamp):
    seen = latent((0.42, 0.05, 0.02), 0.05)
    assert torch.equal(tracker.update(seen, stamp), seen)


def test_in_another_episode_nothing_is_remembered(tracker):
    tracker.forget()
    seen = latent((0.42, 0.05, 0.02), 0.05)
    assert torch.equal(tracker.update(seen, 2 * STEP), seen)


def test_every_number_of_it_can_be_chosen():
    quick = ObjectTracker(LAYOUT, {"forget": 0.3})
    quick.update(latent((0.5, 0.1, 0.02), 0.002), STEP)
    seen = latent((0.42, 0.05, 0.02), 0.05)
    assert torch.equal(quick.update(seen, 2 * STEP), seen)
    with pytest.raises(ConfigurationError, match="did you mean forget"):
        ObjectTracker(LAYOUT, {"forgets": 0.3})


def test_what_proprioception_knows_is_never_weighed(tracker):
    seen = latent((0.5, 0.1, 0.02), 0.05, hand=(0.4, 0.1, 0.2))
    found = tracker.update(seen, 2 * STEP)
    assert torch.equal(found[LAYOUT.arm], seen[LAYOUT.arm])


@given(st.lists(st.floats(0.0005, 0.1), min_size=1, max_size=12), st.integers(0, 1000))
def test_watching_longer_never_leaves_more_doubt_than_looking_once(errors, seed):
    tracker, generator = ObjectTracker(LAYOUT), torch.Generator().manual_seed(seed)
    for count, error in enumerate(errors, start=1):
        place = 0.5 + 0.01 * torch.randn(3, generator=generator)
        found = tracker.update(latent(tuple(place.tolist()), error), count * STEP)
        assert torch.isfinite(found).all()
        assert LAYOUT.get(found, "object_error")[RED] <= max(error, 0.001) + 1e-6
