"""Plots of training and searching."""

import numpy as np
import pytest

from recsys_tasks.curves import plot_curve, plot_practice, plot_q_values, plot_search

EPOCHS = [{"epoch": n, "loss": 9.0 / n, "ndcg@10": n / 10, "seconds": 1.0} for n in (1, 2, 3)]
TRIES = [{"half_life_days": 30.0, "ndcg@10": 0.1}, {"half_life_days": 60.0, "ndcg@10": 0.2}]
TRIALS = [{"ended": 5.0, "ndcg@10": 0.1}, {"ended": 9.0, "ndcg@10": None}, {"ended": 30.0, "ndcg@10": 0.3}]


@pytest.mark.parametrize("curve", [EPOCHS, TRIES, [{"epoch": 5, "ndcg@10": 0.1}]])
def test_a_curve_is_drawn_the_same_every_time(curve, tmp_path):
    for name in ("one", "another"):
        plot_curve(curve, "a model", tmp_path / f"{name}.png")
    drawn = (tmp_path / "one.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert drawn == (tmp_path / "another.png").read_bytes()


def test_another_curve_is_another_picture(tmp_path):
    plot_curve(EPOCHS, "a model", tmp_path / "one.png")
    plot_curve(EPOCHS[:2], "a model", tmp_path / "another.png")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "another.png").read_bytes()


@pytest.mark.parametrize("trials", [TRIALS, []])
def test_a_search_is_drawn_also_where_no_trial_came_to_its_end(trials, tmp_path):
    plot_search(trials, 0.2, "a search", tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")


def test_practice_is_drawn_the_same_every_time(tmp_path):
    curve = [{"episodes": 10 * n, "epsilon": 1 / n, "reward": n, "cumulative": n * n} for n in range(1, 9)]
    for name in ("one", "another"):
        plot_practice(curve, "an agent", tmp_path / f"{name}.png")
    drawn = (tmp_path / "one.png").read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert drawn == (tmp_path / "another.png").read_bytes()


def test_q_values_are_drawn_without_what_is_not_allowed(tmp_path):
    q_values = np.random.default_rng(0).normal(size=(50, 6))
    plot_q_values(q_values, "an agent", tmp_path / "one.png")
    closed = np.hstack([q_values, np.full((50, 1), -np.inf)])
    plot_q_values(np.vstack([closed, np.full((1, 7), -np.inf)]), "an agent", tmp_path / "another.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "another.png").read_bytes()
