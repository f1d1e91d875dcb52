"""The memory of the agent: n-step transitions against a plain walk through the same episodes."""

import numpy as np
import pytest

from recsys_tasks.errors import ContractError
from recsys_tasks.simulation.replay import Log, Replay

DISCOUNT, N = 0.9, 3


def told(number):
    """Observations that tell their number: (n,) int."""
    number = np.atleast_1d(number)
    none = np.zeros((len(number), 1), np.int32)
    features = np.stack([number, number], 1)[:, :, None].astype(np.float32)
    return {
        "history": number[:, None].astype(np.int32),
        "event": none,
        "candidates": np.tile(np.int32([1, 2]), (len(number), 1)),
        "features": features,
        "action_mask": np.ones((len(number), 2), np.int8),
    }


def played(capacity, steps, n_envs=4, seed=0):
    """A replay filled by environments with random ends, and each episode as it was: states, rewards, terminated."""
    rng = np.random.default_rng(seed)
    replay = Replay(capacity, N, DISCOUNT)
    count = iter(range(10**6))
    now = np.array([next(count) for _ in range(n_envs)])
    replay.begin(told(now))
    open_ones, episodes = [([number], []) for number in now], []
    for _ in range(steps):
        action, reward = now % 2, rng.integers(1, 9, n_envs).astype(np.float32)
        end = rng.random(n_envs)
        terminated, truncated = end < 0.15, (end > 0.1) & (end < 0.3)
        final = np.full(n_envs, None, object)
        for n in range(n_envs):
            states, rewards = open_ones[n]
            rewards.append(reward[n])
            now[n] = next(count)
            if terminated[n] or truncated[n]:
                final[n] = {name: array[0] for name, array in told(now[n]).items()}
                episodes.append(([*states, now[n]], rewards, terminated[n]))
                now[n] = next(count)
                open_ones[n] = ([now[n]], [])
            else:
                states.append(now[n])
        replay.add(action, reward, terminated, truncated, told(now), final)
    return replay, episodes + [(states, rewards, None) for states, rewards in open_ones]


def expected(episodes):
    """State -> (reward, discount, next state) of all transitions that are known, by the definition."""
    found = {}
    for states, rewards, terminated in episodes:
        for start in range(len(rewards)):
            end = min(start + N, len(rewards))
            if terminated is None and end - start < N:
                continue
            reward = sum(DISCOUNT**k * rewards[start + k] for k in range(end - start))
            over = bool(terminated) and end == len(rewards)
            found[states[start]] = (reward, 0 if over else DISCOUNT ** (end - start), None if over else states[end])
    return found


def read(replay, transitions):
    following = transitions.next_state["history"][:, 0]
    return {
        int(state): (pytest.approx(reward), pytest.approx(discount), int(after) if discount else None)
        for state, reward, discount, after in zip(
            transitions.state["history"][:, 0], transitions.reward, transitions.discount, following, strict=True
        )
    }


def test_all_that_is_known_is_there_and_nothing_crosses_the_end_of_an_episode():
    replay, episodes = played(1000, 60)
    assert {terminated for _, _, terminated in episodes} == {True, False, None}
    assert read(replay, replay.at(replay.complete())) == expected(episodes)


def test_the_oldest_states_are_overwritten_and_what_is_left_is_right():
    replay, episodes = played(40, 60)
    held = read(replay, replay.at(replay.complete()))
    assert len(replay) == 40
    wanted = expected(episodes)
    assert len(held) > 20
    assert held == {state: wanted[state] for state in held}
    assert min(held) > 200
    assert max(held) == max(wanted)


def test_samples_are_of_the_known_transitions_all_as_often():
    replay, episodes = played(1000, 20)
    drawn = replay.sample(20_000, np.random.default_rng(0)).state["history"][:, 0]
    states, times = np.unique(drawn, return_counts=True)
    assert set(states) == set(expected(episodes))
    assert times.min() > 0.6 * times.mean()
    assert times.max() < 1.4 * times.mean()


def test_actions_and_features_come_back_with_their_state():
    replay, _ = played(1000, 20)
    drawn = replay.sample(100, np.random.default_rng(0))
    assert drawn.state["features"].dtype == np.float32
    assert (drawn.state["features"][:, 0, 0] == drawn.state["history"][:, 0]).all()
    assert (drawn.action == drawn.state["history"][:, 0] % 2).all()


def test_before_enough_steps_there_is_nothing_to_sample():
    replay = Replay(100, N, DISCOUNT)
    replay.begin(told(np.arange(4)))
    with pytest.raises(ContractError, match="found hardly any"):
        replay.sample(8, np.random.default_rng(0))


def logged(**changed):
    rows = {
        "state": told(np.arange(6)),
        "action": np.array([0, 1, 0, 1, 0, 1]),
        "reward": np.array([1.0, 2, 3, 4, 5, 6]),
        "episode": np.array([0, 0, 0, 0, 7, 7]),
        "terminated": np.array([False, False, False, True, False, False]),
    }
    return Log(**{**rows, **changed})


def test_a_log_gives_the_transitions_of_its_episodes():
    replay = Replay.of(logged(), N, DISCOUNT)
    assert read(replay, replay.at(replay.complete())) == {
        0: (1 + 0.9 * 2 + 0.81 * 3, pytest.approx(0.729), 3),
        1: (2 + 0.9 * 3 + 0.81 * 4, 0, None),
        2: (3 + 0.9 * 4, 0, None),
        3: (4, 0, None),
        4: (5, pytest.approx(0.9), 5),
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"reward": np.zeros(3)}, "expected 6 rows of reward"),
        ({"episode": np.array([1, 1, 0, 0, 0, 0])}, "ascending"),
        ({"terminated": np.array([True, False, False, False, False, True])}, "nothing after a terminated row"),
        ({"state": {**told(np.arange(6)), "action_mask": np.zeros((6, 2), np.int8)}}, "that the mask allows"),
    ],
)
def test_a_log_that_cannot_be_is_refused(changed, message):
    with pytest.raises(ContractError, match=message):
        logged(**changed)
