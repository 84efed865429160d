import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation.statistics import mcnemar, paired_difference, wilson


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case):
    successes, n = case
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    found = wilson(successes, n)
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)


def test_no_case_says_nothing():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ConfigurationError, match="successes"):
        wilson(successes, n)


def outcomes(both, gained, lost, neither):
    a = [1] * both + [0] * gained + [1] * lost + [0] * neither
    b = [1] * both + [1] * gained + [0] * lost + [0] * neither
    return a, b


def test_paired_difference_agrees_with_the_published_example():
    # Airway hyper-responsiveness in 21 children (Fagerland, Lydersen, Laake: Statistics in Medicine
    # 33:2850, 2014): difference -0.286, square-and-add interval -0.507 to -0.026, exact p 0.070.
    found = paired_difference(*outcomes(both=1, gained=1, lost=7, neither=12))
    assert found.difference == pytest.approx(-6 / 21)
    assert (found.low, found.high) == (
        pytest.approx(-0.507, abs=5e-4),
        pytest.approx(-0.026, abs=5e-4),
    )
    assert found.mcnemar_p == pytest.approx(0.0703, abs=5e-5)


cells = st.tuples(*[st.integers(0, 60)] * 4).filter(lambda c: sum(c) > 0)


@given(cells)
def test_exchanging_the_arms_mirrors_the_interval(counts):
    a, b = outcomes(*counts)
    forth, back = paired_difference(a, b), paired_difference(b, a)
    assert forth.low == pytest.approx(-back.high)
    assert forth.mcnemar_p == back.mcnemar_p
    assert -1.0 <= forth.low <= forth.difference <= forth.high <= 1.0


def test_the_interval_covers_the_true_difference():
    rng = np.random.default_rng(0)
    cell_rates = np.array([0.45, 0.25, 0.05, 0.25])  # both, gained, lost, neither: +20 points
    covered = 0
    for _ in range(400):
        found = paired_difference(*outcomes(*rng.multinomial(60, cell_rates)))
        covered += found.low <= 0.2 <= found.high
    assert 0.92 <= covered / 400 <= 0.98


def test_mcnemar_is_the_exact_sign_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(10, 0) == pytest.approx(2 * 0.5**10)


def test_unpaired_outcomes_are_refused():
    with pytest.raises(ConfigurationError, match="same n"):
        paired_difference([1, 0], [1])
