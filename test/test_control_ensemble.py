import numpy as np

from vla_reasoner_ros.control.ensemble import TemporalEnsemble

STEP = 100_000_000


def due(first, count):
    return 10**18 + STEP * np.arange(first, first + count)


def test_the_first_chunk_is_taken_as_it_is():
    waypoints = np.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(TemporalEnsemble().mean(due(0, 3), waypoints, 0.1), waypoints)


def test_predictions_of_one_moment_are_averaged_with_the_oldest_first():
    ensemble = TemporalEnsemble()
    ensemble.add(due(0, 4), np.zeros((4, 1)))
    mean = ensemble.mean(due(2, 4), np.ones((4, 1)), 0.5)
    share = np.exp(-0.5) / (1.0 + np.exp(-0.5))
    np.testing.assert_allclose(mean[:, 0], [share, share, 1.0, 1.0])


def test_between_two_waypoints_a_chunk_predicts_what_lies_between():
    ensemble = TemporalEnsemble()
    ensemble.add(due(0, 3), np.array([[0.0], [1.0], [2.0]]))
    mean = ensemble.mean(due(0, 2) + STEP // 2, np.array([[0.5], [1.5]]), 0.0)
    np.testing.assert_allclose(mean[:, 0], [0.5, 1.5])


def test_chunks_that_are_over_are_forgotten():
    ensemble = TemporalEnsemble()
    for index in range(100):
        ensemble.add(due(8 * index, 4), np.full((4, 1), float(index)))
    assert len(ensemble._chunks) == 1
    ensemble.clear()
    np.testing.assert_allclose(ensemble.mean(due(0, 2), np.ones((2, 1)), 0.0), 1.0)
