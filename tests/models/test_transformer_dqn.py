"""What the agent's order is made of, and what it reports to the gate."""

from dataclasses import replace

import numpy as np
import pytest

from recsys_tasks.errors import TrainingError
from recsys_tasks.models.transformer_dqn import TransformerDQN, _report, ordered
from recsys_tasks.simulation.shop import FEATURES
from tests.models.test_models import checkerboard, lesson, model


class Agent:
    """Likes the last candidate best."""

    def q_values(self, seen):
        return np.where(seen["action_mask"] > 0, np.arange(seen["action_mask"].shape[1]), -np.inf)


def seen(scores, mask):
    features = np.zeros((*np.shape(scores), len(FEATURES)), np.float32)
    features[..., FEATURES.index("score")] = scores
    return {"features": features, "action_mask": np.array(mask, np.int8)}


def test_q_weighs_as_much_as_it_is_told_beside_the_supervised_score():
    customer = seen([[1.0, 0.8, 0.5, 0.0, 0.0]], [[1, 1, 1, 1, 0]])
    assert np.argsort(-ordered(Agent(), 0.0)(customer))[0, :4].tolist() == [0, 1, 2, 3]
    assert np.argsort(-ordered(Agent(), 100.0)(customer))[0, :4].tolist() == [3, 2, 1, 0]
    assert ordered(Agent(), 1.0)(customer)[0, 4] == -np.inf


def test_a_list_of_one_or_none_is_no_division_by_zero():
    found = ordered(Agent(), 1.0)(seen([[1.0, 0.0], [0.0, 0.0]], [[1, 0], [0, 0]]))
    assert found.tolist() == [[0.0, -np.inf], [-np.inf, -np.inf]]


def test_the_gate_is_told_the_least_sure_of_the_gains():
    rng = np.random.default_rng(0)
    rewards = {name: rng.normal(mean, 0.1, 400) for name, mean in {"agent": 2, "control": 2, "supervised": 1}.items()}
    rewards["random"] = np.zeros(400)
    sure, unsure = np.full(400, 3.0), rng.normal(0, 9, 400)
    report = _report(rewards, [sure, unsure], 0.4)
    assert report["simulated/lift"] == pytest.approx(unsure.mean())
    assert report["simulated/lift low"] < 0 < report["simulated/lift high"]
    assert _report(rewards, [sure], 0.4)["simulated/lift"] == pytest.approx(1, abs=0.05)
    assert report["simulated/lift over control low"] < 0 < report["simulated/lift over control high"]
    assert report["weight of Q"] == 0.4


def test_without_a_ranker_there_is_nothing_to_re_order():
    told = replace(lesson("ranker", checkerboard()), sources={})
    with pytest.raises(TrainingError, match="add ranker to the models"):
        TransformerDQN().fit(told)


def test_too_few_customers_are_told():
    told = lesson("transformer_dqn", checkerboard())
    few = replace(told, visits=lambda: told.visits().where(told.visits().user == 1))
    with pytest.raises(TrainingError, match="1 customers are too few"):
        model("transformer_dqn").fit(few)
