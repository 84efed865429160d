import itertools

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from vla_reasoner_ros.dense_kernels import HAS_BFLOAT16
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.perceptron import Perceptron

PRECISIONS = ["float32", *(["bfloat16"] if HAS_BFLOAT16 else [])]


def network(members, widths, seed=0):
    rng = np.random.default_rng(seed)
    shapes = list(itertools.pairwise(widths))
    weights = [rng.standard_normal((members, a, b)) / np.sqrt(a) for a, b in shapes]
    biases = [0.3 * rng.standard_normal((members, b)) for _, b in shapes]
    return [w.astype(np.float32) for w in weights], [b.astype(np.float32) for b in biases]


def exact(weights, biases, activation, inputs):
    """The same network in float64, by torch."""
    act = functional.relu if activation == "relu" else functional.silu
    values = torch.from_numpy(inputs).double()
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        values = values @ torch.from_numpy(weight).double() + torch.from_numpy(bias)[:, None]
        values = act(values) if i < len(weights) - 1 else values
    return values.numpy()


@settings(max_examples=40, deadline=None)
@given(
    members=st.integers(1, 3),
    rows=st.integers(0, 70),
    widths=st.lists(st.integers(1, 70), min_size=2, max_size=5),
    activation=st.sampled_from(["relu", "silu"]),
    precision=st.sampled_from(PRECISIONS),
    seed=st.integers(0, 2**16),
)
def test_it_computes_what_its_layers_say(members, rows, widths, activation, precision, seed):
    weights, biases = network(members, widths, seed)
    inputs = np.random.default_rng(seed).standard_normal((members, rows, widths[0]))
    inputs = inputs.astype(np.float32)
    answer = Perceptron(weights, biases, activation, precision)(inputs)
    wanted = exact(weights, biases, activation, inputs)
    assert answer.shape == wanted.shape
    # Eight significant bits, in every layer and of weights and activations both.
    limit = 1e-5 if precision == "float32" else 2.0**-8 * 4 * len(weights)
    np.testing.assert_allclose(answer, wanted, atol=limit * max(1.0, np.abs(wanted).max(initial=0)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_row_is_the_same_in_every_batch_and_on_any_number_of_threads(precision):
    weights, biases = network(2, (9, 40, 5))
    inputs = np.random.default_rng(1).standard_normal((2, 150, 9)).astype(np.float32)
    alone = Perceptron(weights, biases, "silu", precision)
    together = alone(inputs).copy()
    for first, last in ((0, 1), (3, 8), (11, 31), (140, 150)):
        np.testing.assert_array_equal(alone(inputs[:, first:last]), together[:, first:last])
    for threads in (2, 3):
        shared = Perceptron(weights, biases, "silu", precision, threads)
        np.testing.assert_array_equal(shared(inputs), together)


def test_members_can_share_their_inputs():
    network_of_3 = Perceptron(*network(3, (6, 20, 4)), "relu")
    inputs = np.random.default_rng(1).standard_normal((1, 7, 6)).astype(np.float32)
    repeated = np.repeat(inputs, 3, axis=0)
    np.testing.assert_array_equal(network_of_3(inputs).copy(), network_of_3(repeated))


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, (1, 8, 1), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    st.sampled_from(["relu", "silu"]),
)
def test_activations_are_those_of_torch_for_any_number(inputs, activation):
    one = [np.ones((1, 1, 1), np.float32)] * 2
    none = [np.zeros((1, 1), np.float32)] * 2
    answer = Perceptron(one, none, activation)(inputs)
    wanted = exact(one, none, activation, inputs)
    # Below -87 float32 cannot hold what torch still computes in float64: nothing remains of it.
    np.testing.assert_allclose(answer, wanted, rtol=3e-6, atol=1e-35 + 1e-37 * abs(inputs).max())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_what_is_not_a_number_stays_visible(precision, activation):
    inputs = np.ones((1, 3, 4), np.float32)
    inputs[0, 1, 2] = np.nan
    answer = Perceptron(*network(1, (4, 8, 2)), activation, precision)(inputs)
    assert np.isnan(answer[0, 1]).all()
    assert np.isfinite(answer[0, [0, 2]]).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"activation": "tanh"}, "no activation 'tanh'"),
        ({"precision": "int8"}, "precision: expected one of float32, bfloat16, got 'int8'"),
        ({"threads": 0}, "positive number of threads, got 0"),
        ({"biases": []}, "as many weights as biases, got 2 and 0"),
        ({"weights": network(1, (4, 7, 2))[0]}, r"layer 0 has weights \(1, 4, 7\)"),
        ({"weights": [np.full((1, 4, 8), np.nan, np.float32)] * 2}, "layer 0 are not finite"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(change, named):
    weights, biases = network(1, (4, 8, 2))
    given_ = {"weights": weights, "biases": biases, "activation": "relu"} | change
    with pytest.raises(ConfigurationError, match=named):
        Perceptron(**given_)


def test_inputs_of_another_form_are_refused():
    network_of_2 = Perceptron(*network(2, (4, 8, 2)), "relu")
    for wrong in (
        np.zeros((2, 3, 5), np.float32),
        np.zeros((2, 3, 4)),
        np.zeros((3, 4), np.float32),
    ):
        with pytest.raises(ValueError, match=r"expected \(2, B, 4\) float32"):
            network_of_2(wrong)


@pytest.mark.skipif(HAS_BFLOAT16, reason="this processor has AVX512_BF16")
def test_bfloat16_needs_the_processor():
    with pytest.raises(ConfigurationError, match="AVX512_BF16"):
        Perceptron(*network(1, (4, 8, 2)), "relu", "bfloat16")
