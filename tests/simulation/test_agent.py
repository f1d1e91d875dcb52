"""The agent in worlds small enough to know what it should learn."""

import logging

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

from recsys_tasks.errors import ContractError, TrainingError
from recsys_tasks.simulation.agent import Agent, AgentConfig, Learner, play
from recsys_tasks.simulation.replay import Log, Transitions

H, DISCOUNT, ENDS = 2, 0.8, 0.1
REWARD = np.array([[0.0, 1.0], [2.0, 0.0]])
"""Of a state and an action; action 0 leads to state 0, action 1 to state 1."""
SMALL = AgentConfig(
    width=8, hidden=32, heads=1, discount=DISCOUNT, n_steps=1, batch_size=64, capacity=5_000, warm_up=500,
    learning_rate=1e-2, target_every=25, prior=(0.0,),
)  # fmt: skip


def seen(state):
    """Observations of a shop that is in state 0 or 1, told by the last item of the history: (n,) int."""
    n = len(state)
    history = np.stack([np.zeros(n), state + 1], 1).astype(np.int32)
    candidates = np.tile(np.int32([1, 2, 3]), (n, 1))
    mask = np.tile(np.int8([1, 1, 0]), (n, 1))
    features = np.zeros((n, 3, 1), np.float32)
    event = (history > 0).astype(np.int32)
    return {"history": history, "event": event, "candidates": candidates, "features": features, "action_mask": mask}


class TwoStates(VectorEnv):
    """Episodes end by chance, in the way that is given; the third candidate is never allowed."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, end, num_envs=32):
        self.end, self.num_envs = end, num_envs
        self.action_space = gymnasium.spaces.MultiDiscrete([3] * num_envs)

    def reset(self, *, seed=None, options=None):
        self.rng = np.random.default_rng(seed)
        self.state = self.rng.integers(0, 2, self.num_envs)
        return seen(self.state), {}

    def step(self, action):
        assert (action < 2).all()
        reward, self.state = REWARD[self.state, action], action.copy()
        ended = self.rng.random(self.num_envs) < ENDS
        final = np.full(self.num_envs, None, object)
        for n in np.flatnonzero(ended):
            final[n] = {name: array[0] for name, array in seen(self.state[n : n + 1]).items()}
        self.state[ended] = self.rng.integers(0, 2, ended.sum())
        infos = {"final_obs": final, "_final_obs": ended} if ended.any() else {}
        never = np.zeros(self.num_envs, bool)
        terminated, truncated = (ended, never) if self.end == "terminated" else (never, ended)
        return seen(self.state), reward, terminated, truncated, infos


def closed_form(discount):
    """Q of alternating, the best there is: V0 = 1 + d V1, V1 = 2 + d V0."""
    value = np.linalg.solve([[1, -discount], [-discount, 1]], [1, 2])
    return REWARD + discount * value


def agent(config=SMALL, seed=0, n_features=1):
    return Agent(np.eye(3, dtype=np.float32), n_events=1, n_features=n_features, history=H, config=config, seed=seed)


@pytest.fixture(scope="module")
def practised():
    return {end: agent().train(TwoStates(end), 20_000) for end in ("terminated", "truncated")}


@pytest.mark.parametrize(("end", "goes_on"), [("terminated", 1 - ENDS), ("truncated", 1.0)])
def test_q_values_are_those_of_the_closed_form(practised, end, goes_on):
    learned = practised[end].q_values(seen(np.array([0, 1])))
    assert learned[:, :2] == pytest.approx(closed_form(DISCOUNT * goes_on), rel=0.05, abs=0.05)
    assert (learned[:, 2] == -np.inf).all()


def test_an_end_and_a_cut_give_different_values():
    assert closed_form(DISCOUNT).min() > 1.5 * closed_form(DISCOUNT * (1 - ENDS)).min()


def test_exploring_gives_way_to_what_was_learned(practised):
    curve = practised["terminated"].curve
    assert [curve[0]["epsilon"] > 0.9, curve[-1]["epsilon"]] == [True, 0.05]
    rewards = [point["reward"] for point in curve]
    assert np.mean(rewards[-20:]) > 1.4 * np.mean(rewards[:20])
    assert curve[-1]["steps"] == 20_000
    assert curve[-1]["cumulative"] / curve[-1]["episodes"] == pytest.approx(np.mean(rewards), rel=0.1)
    assert agent().epsilon(0.15) == pytest.approx((1 + 0.05) / 2)


def test_training_tells_how_far_it_is(caplog):
    with caplog.at_level(logging.INFO):
        agent().train(TwoStates("terminated"), 1_000)
    assert "agent: step 1024 of 1000, epsilon 0.05, mean reward of an episode" in caplog.text
    assert "0 s left" in caplog.text


def test_the_same_seed_learns_the_same_and_another_does_not():
    one, same, other = (agent(seed=seed).train(TwoStates("terminated"), 1_600).state() for seed in (1, 1, 2))
    assert all((one[name] == same[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


def shown(features, mask=None):
    """One state a row, whose candidates have these features (n, C)."""
    features = np.asarray(features, np.float32)
    observation = {name: np.repeat(array[:1], len(features), 0) for name, array in seen(np.array([0])).items()}
    mask = np.ones(features.shape) if mask is None else mask
    return {**observation, "features": features[:, :, None], "action_mask": np.asarray(mask, np.int8)}


def test_at_first_the_order_is_the_supervised_one():
    fresh = agent(SMALL.model_copy(update={"prior": (0.7,)}))
    observation = shown([[0.1, 0.9, 0.3], [0.5, 0.2, 0.6]], [[1, 1, 1], [1, 1, 0]])
    assert fresh.act(observation).tolist() == [1, 0]
    assert fresh.q_values(observation)[0] == pytest.approx([0.07, 0.63, 0.21])


@pytest.mark.parametrize(("double", "value"), [(True, -2.0), (False, -1.0)])
def test_the_online_network_chooses_what_the_target_network_values(double, value):
    made = agent(SMALL.model_copy(update={"prior": (1.0,), "double": double}))
    learner = Learner(made, 1e-3, 100)
    made.target.skip.set_weights([np.array([[-1.0]])])  # the target's Q is -1, -2, -3; the third is not allowed
    following = shown([[1.0, 2.0, 3.0]] * 2, [[1, 1, 0]] * 2)
    reward, discount = np.float32([5, 5]), np.float32([0.5, 0])
    assert learner.targets(reward, discount, following).numpy() == pytest.approx([5 + 0.5 * value, 5])


def test_where_nothing_may_be_chosen_nothing_is_to_be_earned():
    learner = Learner(agent(SMALL.model_copy(update={"prior": (1.0,)})), 1e-3, 100)
    following = shown([[1.0, 2.0, 3.0]], [[0, 0, 0]])
    assert learner.targets(np.float32([5]), np.float32([0.9]), following).numpy() == pytest.approx([5])


def test_the_target_network_moves_only_every_so_many_steps():
    made = agent(SMALL.model_copy(update={"target_every": 3}))
    learner = Learner(made, 1e-2, 100)
    state = shown([[0.0, 0, 0]] * 4)
    batch = Transitions(state, np.zeros(4, np.int32), np.ones(4, np.float32), np.zeros(4, np.float32), state)
    online, target = (lambda: made.network.of_both.get_weights()[1]), (lambda: made.target.of_both.get_weights()[1])
    found = []
    for _ in range(4):
        learner.td(batch)
        found.append((float(target()[0]), float(online()[0])))
    assert [pair[0] for pair in found] == [0, 0, found[2][1], found[2][1]]
    assert len({pair[1] for pair in found}) == 4


def test_learning_waits_until_there_is_something_to_learn_from():
    made = agent(SMALL.model_copy(update={"warm_up": 0, "n_steps": 3}))
    assert made.train(TwoStates("truncated"), 320).curve[-1]["steps"] == 320


@pytest.fixture(scope="module")
def decisions():
    """A log of single decisions; what was chosen has the second feature, and earned 1, or 0 with the third."""
    rng = np.random.default_rng(0)
    chosen, bought = rng.integers(0, 3, 600), rng.random(600) < 0.5
    features = rng.normal(size=(600, 3, 3)).astype(np.float32) * 0.1
    features[np.arange(600), chosen, np.where(bought, 1, 2)] += 1
    state = {**shown(np.zeros((600, 3))), "features": features}
    return Log(state, chosen, bought.astype(float), np.arange(600), np.ones(600, bool))


TUNED = SMALL.model_copy(update={"tuning_steps": 300, "tuning_rate": 3e-3})


def test_the_penalty_lowers_what_the_log_did_not_do(decisions):
    others = {}
    for alpha in (0.0, 1.0):
        made = agent(TUNED.model_copy(update={"conservative": alpha}), n_features=3).fine_tune(decisions)
        q = made.q_values(decisions.state)
        logged = q[np.arange(600), decisions.action]
        others[alpha] = logged.mean() - (q.sum(1) - logged).mean() / 2
        if not alpha:
            assert logged == pytest.approx(decisions.reward, abs=0.3)
    assert others[1.0] > others[0.0] + 0.5


def test_the_control_puts_first_what_was_bought(decisions):
    made = agent(TUNED, n_features=3).fit_supervised(decisions)
    bought = decisions.reward > 0
    first = made.act(decisions.state) == decisions.action
    assert first[bought].mean() > 0.98
    assert first[~bought].mean() < 0.5


def test_without_anything_earned_the_control_has_nothing_to_learn(decisions):
    nothing = Log(decisions.state, decisions.action, np.zeros(600), decisions.episode, decisions.terminated)
    with pytest.raises(ContractError, match="expected rewards above 0"):
        agent(TUNED, n_features=3).fit_supervised(nothing)


def test_a_loss_that_is_not_a_number_ends_the_training(decisions):
    broken = Log(decisions.state, decisions.action, np.full(600, np.nan), decisions.episode, decisions.terminated)
    with pytest.raises(TrainingError, match="lower the learning rate"):
        agent(TUNED, n_features=3).fine_tune(broken)


def many(n, made, candidates=7, seed=0):
    rng = np.random.default_rng(seed)
    history = rng.integers(0, 4, (n, H)).astype(np.int32)
    return {
        "history": history,
        "event": (history > 0).astype(np.int32),
        "candidates": rng.integers(1, 4, (n, candidates)).astype(np.int32),
        "features": rng.normal(size=(n, candidates, made.shape["n_features"])).astype(np.float32),
        "action_mask": (rng.random((n, candidates)) < 0.8).astype(np.int8),
    }


def test_a_loaded_agent_decides_the_same(practised, tmp_path):
    made = practised["truncated"]
    made.save(tmp_path)
    again = Agent.load(tmp_path)
    observation = many(50, made)
    assert (again.q_values(observation) == made.q_values(observation)).all()
    assert (again.curve, again.config, again.seed) == (made.curve, made.config, made.seed)
    assert not list(tmp_path.glob("*.pkl"))


def test_another_format_is_refused(practised, tmp_path):
    practised["truncated"].save(tmp_path)
    file = tmp_path / "agent.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(TrainingError, match="format is 0, expected 1"):
        Agent.load(tmp_path)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_exported_agent_decides_the_same(blocks, tmp_path):
    import tensorflow as tf

    made = agent(TUNED.model_copy(update={"blocks": blocks, "heads": 2, "prior": (0.3,)}), n_features=3)
    made.network.of_both.set_weights([np.random.default_rng(0).normal(size=(32, 1)), np.ones(1)])
    made.export(tmp_path / "agent.tflite", candidates=7)
    interpreter = tf.lite.Interpreter(str(tmp_path / "agent.tflite"), num_threads=1)
    run = interpreter.get_signature_runner()
    observation = many(40, made)
    wanted = made.q_values(observation)
    for n in range(40):
        one = {name: array[n : n + 1] for name, array in observation.items()}
        vectors = {name: made.items[one[name]] for name in ("history", "candidates")}
        found = run(**{**one, **vectors, "action_mask": one["action_mask"].astype(np.int32)})["q"]
        legal = np.isfinite(wanted[n])
        assert found[0, legal] == pytest.approx(wanted[n, legal], abs=1e-4)
        assert (found[0, ~legal] < -1e8).all()
        assert found.argmax() == wanted[n].argmax()


def test_an_item_that_came_later_is_read_like_one_of_its_vector():
    made = agent()
    assert made.project(np.eye(3, dtype=np.float32)[[1]]) == pytest.approx(made.items[2:3])
    assert not made.items[0].any()


def test_wider_item_vectors_keep_their_likeness():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(50, 4)) @ rng.normal(size=(4, 20))).astype(np.float32)
    found = Agent(vectors, 1, 1, H, SMALL).items[1:]
    likeness, of_given = found @ found.T, vectors @ vectors.T
    assert likeness / likeness[0, 0] == pytest.approx(of_given / of_given[0, 0], abs=1e-3)
    assert (found**2).mean() == pytest.approx(1, rel=0.01)


def test_item_vectors_that_say_nothing_are_refused():
    with pytest.raises(ContractError, match="zeros only"):
        Agent(np.zeros((3, 2), np.float32), 1, 1, H, SMALL)


class Short(TwoStates):
    """Environment n has episodes of n + 1 steps, each of reward 1."""

    def reset(self, *, seed=None, options=None):
        self.left = np.arange(1, self.num_envs + 1)
        return super().reset(seed=seed)

    def step(self, action):
        self.left = self.left - 1
        ended = self.left == 0
        self.left[ended] = 1 + np.flatnonzero(ended)
        never = np.zeros(self.num_envs, bool)
        return seen(self.state), np.ones(self.num_envs), ended, never, {}


def test_playing_counts_as_many_episodes_of_each_environment():
    found = play(Short("terminated", 3), lambda observation: np.zeros(3, int), 7)
    assert sorted(found) == [1, 1, 1, 2, 2, 3, 3]
