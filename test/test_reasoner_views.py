"""The policy is shown what the world model's cameras would show in the view of training."""

from dataclasses import replace

import numpy as np
import pytest
from test_reasoner import Drifter, Point, observation, reasoner

from vla_reasoner_ros.errors import ObservationError
from vla_reasoner_ros.search.statistics import Status


class Watcher(Drifter):
    """Remembers what it was shown."""

    def reset(self):
        super().reset()
        self.shown = []

    def propose(self, observation, n=1):
        self.shown.append(observation.instruction)
        return super().propose(observation, n)


class Restoring:
    """Marks what went through it."""

    def restore(self, observation):
        return replace(observation, instruction="restored")


class Blind:
    """Cannot make anything of the images."""

    def restore(self, observation):
        raise ObservationError("views: camera 'agent' is missing")


class Knowing(Point):
    """A world model that knows the view of training."""

    def __init__(self, views):
        self.views = views


def shown(world_model, **parameters):
    agent = reasoner(policy := Watcher(), world_model, **parameters)
    decision = agent.decide(observation())
    return policy.shown, decision.statistics.status


def test_the_policy_is_shown_restored_images_while_there_is_a_search():
    assert shown(Knowing(Restoring())) == (["restored"], Status.OK)


@pytest.mark.parametrize(
    ("world_model", "parameters"),
    [
        (Point(), {}),
        (Knowing(None), {}),
        (Knowing(Restoring()), {"restore_views": False}),
        (Knowing(Restoring()), {"alpha": 1.0}),
    ],
)
def test_it_is_shown_what_was_seen_otherwise(world_model, parameters):
    assert shown(world_model, **parameters)[0] == ["go there"]


def test_images_that_cannot_be_restored_do_not_stop_the_policy():
    assert shown(Knowing(Blind()))[0] == ["go there"]


def test_restoring_changes_nothing_else_of_a_decision():
    plain, restored = (
        reasoner(world_model=world_model).decide(observation())
        for world_model in (Point(), Knowing(Restoring()))
    )
    np.testing.assert_array_equal(plain.chunk.actions, restored.chunk.actions)
