"""The native sampler against NumPy's meaning of each filter."""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np
import pytest

from hetrun.errors import DeviceError, UsageError
from hetrun.run.sample import Sampler, Sampling


def view(logits):
    return memoryview(array("f", logits))


def kept_probabilities(logits, *, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """Independent meaning: probability of each id after the filters, in the documented order."""
    logits = np.asarray(logits, np.float64)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k:
        order = order[:top_k]
    p = np.exp(logits[order] - logits[order[0]])
    p /= p.sum()
    n = int(np.searchsorted(np.cumsum(p), top_p) + 1) if top_p < 1 else len(order)
    kept = [i for i, q in zip(order[:n], p, strict=False) if q >= min_p * p[0]]
    q = np.exp((logits[kept] - logits[order[0]]) / temperature)
    return dict(zip(kept, q / q.sum(), strict=True))


LOGITS = [0.1, 2.0, -1.0, 1.5, 1.4, -3.0, 0.9, 2.0]


def test_zero_temperature_takes_the_first_of_the_most_likely():
    assert Sampler(Sampling()).choose(view(LOGITS)) == 1


@pytest.mark.parametrize(
    "filters",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.0, "top_p": 0.0},
        {"temperature": 2.0, "min_p": 0.5},
        {"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.2},
    ],
    ids=str,
)
def test_draws_follow_the_filtered_distribution(filters):
    settings = Sampling(**{"top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 7, **filters})
    sampler = Sampler(settings)
    n = 20_000
    counts = Counter(sampler.choose(view(LOGITS)) for _ in range(n))
    expected = kept_probabilities(LOGITS, **filters)
    assert set(counts) <= set(expected)
    for token, probability in expected.items():
        sigma = (n * probability * (1 - probability)) ** 0.5
        assert abs(counts[token] - n * probability) <= 5 * sigma + 1


def test_equal_seeds_draw_equal_tokens():
    def draws(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.choose(view(LOGITS)) for _ in range(50)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    sampler = Sampler(Sampling(repeat_penalty=2.0), prompt=[0, 0, 2])
    # 3.0 / 2 falls below 2.0; -0.5 * 2 stays last; a repeated id is penalised once.
    assert sampler.choose(view([3.0, 1.8, -0.5, 1.6])) == 1
    assert sampler.choose(view([3.0, 1.8, -0.5, 1.6])) == 3  # 1 is recent now


def test_repetition_penalty_forgets_after_the_last_n():
    sampler = Sampler(Sampling(repeat_penalty=2.0, repeat_last_n=1), prompt=[0, 1])
    assert sampler.choose(view([3.0, 4.0])) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_never_chosen(temperature):
    nan = float("nan")
    sampler = Sampler(Sampling(temperature=temperature, seed=1))
    assert {sampler.choose(view([nan, 1.0, nan])) for _ in range(20)} == {1}
    with pytest.raises(DeviceError, match="NaN"):
        sampler.choose(view([nan, nan]))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_infinite_logits_win(temperature):
    inf = float("inf")
    sampler = Sampler(Sampling(temperature=temperature, seed=1))
    assert {sampler.choose(view([0.0, inf, -inf])) for _ in range(20)} == {1}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -1},
        {"repeat_penalty": 0},
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong)).replace("_", "-")):
        Sampling(**wrong)
