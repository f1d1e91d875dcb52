"""The environment: Gymnasium's own checks, and customers who do as their world says."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from recsys_tasks.contract import EVENT_TYPES
from recsys_tasks.errors import ContractError
from recsys_tasks.simulation.agent import play_each
from recsys_tasks.simulation.shop import FEATURES, ID, ShopEnv, ShopVectorEnv
from recsys_tasks.simulation.visits import Visits
from recsys_tasks.simulation.world import bucket
from tests.simulation.shops import KINDS, WEIGHTS, certain, lists, world


def alike(one, other):
    """Are two observations, or infos, alike in all parts?"""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, np.ndarray) and one.dtype == object:
        return len(one) == len(other) and all(alike(a, b) for a, b in zip(one, other, strict=True))
    return np.array_equal(one, other) and np.asarray(one).dtype == np.asarray(other).dtype


def play(env, steps, seed=0):
    """Choose at random; return all that the environment said."""
    rng = np.random.default_rng(seed)
    said = [env.reset(seed=seed)]
    said += [env.step(rng.integers(env.single_action_space.n, size=env.num_envs)) for _ in range(steps)]
    return said


def feature(observation, name):
    """(..., C) of one feature."""
    return observation["features"][..., FEATURES.index(name)]


@pytest.mark.filterwarnings("error")
def test_gymnasium_finds_no_fault():
    check_env(gym.make(ID, **lists(world())).unwrapped)
    check_env(gym.make(ID, reward="revenue", **lists(world())).unwrapped)


def test_is_made_by_its_name():
    env = gym.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point", **lists(world()))
    assert isinstance(env, ShopVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert env.unwrapped.action_masks().shape == (3, 20)


def test_same_seed_same_episodes():
    one, other, another = (play(ShopVectorEnv(8, **lists(world())), 60, seed) for seed in (3, 3, 4))
    assert all(alike(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))
    assert not all(alike(a, b) for x, y in zip(one, another, strict=True) for a, b in zip(x, y, strict=True))


def test_one_customer_of_the_vector_is_the_single_environment():
    made = {**lists(world()), "visits": 2}
    single = SyncVectorEnv([lambda: ShopEnv(**made)], autoreset_mode=AutoresetMode.SAME_STEP)
    one, other = play(ShopVectorEnv(1, **made), 150), play(single, 150)
    assert sum("final_obs" in said[-1] for said in one) > 5
    assert all(alike(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_a_masked_action_wastes_the_slot():
    env = ShopEnv(**lists(certain(world())))
    before, _ = env.reset(seed=0)
    shown, _, _, _, first = env.step(5)
    again, reward, _, _, second = env.step(5)
    assert first["event"] > 0
    assert before["action_mask"].all()
    assert np.flatnonzero(shown["action_mask"] == 0).tolist() == [5]
    assert (reward, second["event"], second["slot"]) == (0, 0, 1)
    assert np.array_equal(shown["history"], again["history"])
    assert (feature(again, "slot") == np.float32(0.2)).all()


def test_no_item_is_never_shown():
    made = lists(certain(world()))
    made["candidates"][:, 4:] = -1
    env = ShopVectorEnv(16, **made)
    observation, _ = env.reset(seed=0)
    assert (observation["action_mask"] == (observation["candidates"] > 0)).all()
    _, rewards, _, _, infos = env.step(np.full(16, 7))
    assert not rewards.any()
    assert not infos["event"].any()


def test_reward_is_the_weight_of_the_event():
    for _, rewards, terminated, truncated, infos in play(ShopVectorEnv(32, **lists(world())), 100)[1:]:
        over = terminated | truncated
        event = np.where(over, infos.get("final_info", infos)["event"] if over.any() else 0, infos.get("event", 0))
        weights = np.array([0.0, *WEIGHTS.values()])
        assert rewards == pytest.approx(weights[event])


def test_revenue_is_the_price_of_what_is_bought():
    found = certain(world())
    earned = []
    env = ShopEnv(**lists(found), reward="revenue")
    for seed in range(60):
        env.reset(seed=seed)
        for item in range(9):
            _, reward, _, _, info = env.step(item)
            assert reward == (np.nan_to_num(found.price[item]) if info["bought"] else 0)
            earned.append(reward)
    assert sum(earned) > 0


def test_an_answer_is_the_newest_of_the_history():
    env = ShopEnv(**lists(certain(world())), history=8)
    before, _ = env.reset(seed=0)
    after, _, _, _, info = env.step(11)
    assert after["history"].tolist() == [*before["history"][1:], 12]
    assert after["event"].tolist() == [*before["event"][1:], info["event"]]
    of_department = np.arange(20) % 4 == 11 % 4
    assert (feature(after, "department") > 0).tolist() == of_department.tolist()


def test_histories_are_those_of_the_customer_asked_for():
    env = ShopVectorEnv(3, **lists(world()))
    rows = np.array([5, 0, 5])
    observation, info = env.reset(seed=1, options={"customers": rows})
    assert info["customer"].tolist() == rows.tolist()
    assert np.array_equal(observation["history"], world().history_item[rows, -30:])


def test_episodes_are_of_the_customers_given():
    env = ShopVectorEnv(64, **lists(world()), customers=np.array([2, 7]))
    assert set(env.reset(seed=0)[1]["customer"]) == {2, 7}


def test_who_never_comes_back_ends_the_episode_for_good():
    env = ShopVectorEnv(16, **lists(certain(world(), returns=np.zeros(2))), slots=4, visits=3)
    for step, (_, _, terminated, truncated, _) in enumerate(play(env, 12)[1:], 1):
        assert (terminated == (step % 4 == 0)).all()
        assert not truncated.any()


def test_visits_that_are_over_truncate_the_episode():
    env = ShopVectorEnv(16, **lists(certain(world())), slots=4, visits=3)
    for step, (_, _, terminated, truncated, _) in enumerate(play(env, 24)[1:], 1):
        assert (truncated == (step % 12 == 0)).all()
        assert not terminated.any()


def test_what_was_shown_may_be_shown_in_the_next_visit():
    env = ShopEnv(**lists(certain(world())), slots=2, visits=3)
    env.reset(seed=0)
    env.step(0)
    observation, *_ = env.step(1)
    assert observation["action_mask"].all()
    assert feature(observation, "visit") == pytest.approx(1 / 3)
    assert not feature(observation, "department").any()


def test_a_bought_item_is_answered_by_its_rhythm():
    never = np.zeros(len(world().rhythm))
    never[0] = 1  # once bought, never again
    kinds = np.zeros_like(world().kinds)
    kinds[..., EVENT_TYPES.index("purchase")] = 1
    events = {}
    for name, rhythm in (("never", never), ("always", np.ones_like(never))):
        found = certain(world(), rhythm=rhythm, kinds=kinds)
        fresh = replace(found, bought_start=found.bought_start * 0, bought_item=found.bought_item[:0])
        env = ShopEnv(
            **lists(replace(fresh, bought_times=found.bought_times[:0], bought_days=found.bought_days[:0])), slots=1
        )
        observation, _ = env.reset(seed=0)
        assert not feature(observation, "bought_ever").any()
        events[name] = [env.step(3)[-1]["bought"] for _ in range(3)]
    assert events == {"never": [True, False, False], "always": [True, True, True]}


def test_what_was_bought_shows_in_the_features():
    env = ShopVectorEnv(1, **lists(world()))
    customer = int(np.argmax(np.diff(world().bought_start)))
    observation, _ = env.reset(seed=0, options={"customers": np.array([customer])})
    times, days = world().bought(np.array([customer]), observation["candidates"] - 1)
    assert feature(observation, "bought") == pytest.approx(np.log1p(times))
    ever = np.isfinite(days)
    assert ever.any()
    assert (feature(observation, "bought_ever") == ever).all()
    assert feature(observation, "bought_days")[ever] == pytest.approx(np.log1p(days[ever]) / np.log1p(365))


def test_event_types_that_the_shop_lacks_never_occur():
    met = np.concatenate(
        [said[-1].get("event", np.zeros(0, int)) for said in play(ShopVectorEnv(64, **lists(world())), 200)]
    )
    assert set(met) == {0, *(EVENT_TYPES.index(name) + 1 for name in KINDS)}


def test_customers_do_as_often_as_their_world_says():
    n = 40_000
    kinds = np.zeros_like(world().kinds)
    kinds[..., EVENT_TYPES.index("view")], kinds[..., EVENT_TYPES.index("purchase")] = 0.7, 0.3
    leave, bored, returns = np.array([0.35]), 0.2, np.array([0.6, 0.9])
    known = replace(world(), kinds=kinds, leave=leave, bored=bored, returns=returns, satiation=np.ones(4))
    env = ShopVectorEnv(n, **lists(known), visits=5)
    rows = np.random.default_rng(0).integers(known.n_customers, size=n)
    env.reset(seed=0, options={"customers": rows})
    _, _, terminated, truncated, infos = env.step(np.zeros(n, int))
    event = np.where(terminated, infos["final_info"]["event"], infos["event"])
    every = np.arange(known.n_customers)[:, None]
    preference = known.preference(every[:, 0], 0 * every)
    days = known.bought(every[:, 0], 0 * every)[1]
    chance = -np.expm1(-known.scale * preference * known.rhythm[bucket(days)])[rows, 0]
    answered, bought = event > 0, event == EVENT_TYPES.index("purchase") + 1
    assert binomial(answered.sum(), chance.mean(), n)
    assert binomial(bought.sum(), 0.3, answered.sum())
    gone = np.where(answered, 0.35 * np.where(bought, 0.1, 0.4), 0.2 * 0.4)
    assert binomial(terminated.sum(), gone.mean(), n)
    assert not truncated.any()


def binomial(found, chance, n):
    """Is the number within four standard deviations of what was to be expected?"""
    assert n * chance > 100
    return abs(found - n * chance) < 4 * np.sqrt(n * chance * (1 - chance))


def test_satiation_makes_answers_rarer():
    full = certain(world(), satiation=np.array([1.0, 0, 0, 0]))
    env = ShopEnv(**lists(full))
    env.reset(seed=0)
    assert [env.step(item)[-1]["event"] > 0 for item in (0, 4, 1, 5, 8)] == [True, False, True, False, False]


def test_lists_that_do_not_fit_the_world_raise():
    made = lists(world())
    with pytest.raises(ContractError, match="candidates and scores"):
        ShopEnv(**{**made, "scores": made["scores"][1:]})
    with pytest.raises(ContractError, match="item_idx below 60"):
        ShopEnv(**{**made, "candidates": made["candidates"] + 60})
    with pytest.raises(ContractError, match="history 65"):
        ShopEnv(**made, history=65)
    with pytest.raises(ContractError, match="rows of the world"):
        ShopEnv(**made, customers=np.array([world().n_customers]))


@pytest.mark.parametrize("reward", ["weights", "revenue"])
def test_expected_rewards_are_the_mean_of_what_is_earned(reward):
    made = {**lists(world()), "reward": reward}
    sums = []
    for expected in (False, True):
        env = ShopVectorEnv(4096, **made, expected=expected)
        env.reset(seed=0)
        rng = np.random.default_rng(1)
        earned = [env.step(rng.integers(20, size=4096))[1] for _ in range(30)]
        sums.append((np.mean(earned), np.std(earned) / np.sqrt(np.size(earned))))
    (sampled, error), (mean, sure) = sums
    assert abs(sampled - mean) < 4 * error
    assert sure < error


def test_the_log_is_told_as_decisions():
    """Two visits of one customer: what was no candidate changes the state but is no decision."""
    of = world()
    user, day, purchase = int(of.user[3]), 86_400_000_000, EVENT_TYPES.index("purchase")
    rows = [
        (4, 0),
        (55, 60),
        (4, 120),
        (7, 180),
        (7, 2 * day),
    ]  # (item, microseconds after the start); 55 is not listed
    log = Visits.of(
        80, 60, WEIGHTS, "purchase",
        user=np.full(5, user), item=np.array([item for item, _ in rows]),
        time=of.start + np.array([when for _, when in rows]), kind=np.full(5, purchase),
    )  # fmt: skip
    told = ShopVectorEnv(1, **lists(of), customers=np.array([3])).logged(log)
    assert told.action.tolist() == [4, 7, 7]
    assert told.reward.tolist() == [1, 1, 1]
    assert told.episode.tolist() == [0, 0, 0]
    assert not told.terminated.any()
    assert told.state["history"][0, -1] != 5, "what is decided is not yet in the state"
    assert told.state["history"][1, -2:].tolist() == [5, 56]
    assert told.state["action_mask"][1, 4] == 0, "a visit shows an item once"
    assert told.state["action_mask"][2].all(), "the next visit may show it again"
    assert feature(told.state, "slot")[:, 0].tolist() == pytest.approx([0, 0.2, 0])
    times = np.expm1(feature(told.state, "bought")[:, 7])
    assert times[2] == pytest.approx(times[0] + 1)


def test_a_log_of_other_items_tells_no_decision():
    of = world()
    rows = {"user": of.user[:1], "item": np.array([55]), "time": np.array([of.start]), "kind": np.array([4])}
    shop = ShopVectorEnv(1, **lists(of), customers=np.array([0]))
    with pytest.raises(ContractError, match="give longer lists"):
        shop.logged(Visits.of(80, 60, WEIGHTS, "purchase", **rows))
    with pytest.raises(ContractError, match="one each of 2 customers, found 1"):
        ShopVectorEnv(1, **lists(of), customers=np.array([0, 1])).logged(Visits.of(80, 60, WEIGHTS, "purchase", **rows))


def test_policies_are_compared_by_the_same_customers():
    shop = ShopVectorEnv(20, **lists(world()), customers=np.arange(20), expected=True)
    first = play_each(shop, lambda seen: seen["action_mask"].argmax(1), 2, seed=0)
    assert first.shape == (20,)
    assert (first == play_each(shop, lambda seen: seen["action_mask"].argmax(1), 2, seed=0)).all()
    wasted = play_each(shop, lambda seen: np.zeros(20, int), 2, seed=0)  # but for the first slot of a visit
    assert wasted.mean() < first.mean()
