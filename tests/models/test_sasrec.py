"""What only ``sasrec`` does: order, baskets, lengths, the loss, warm start, items known by their text alone."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest

from recsys_tasks.models.sasrec import (
    SASRec,
    SASRecConfig,
    Trainer,
    _initial,
    _inputs,
    _is_new,
    _kind,
    _training_batches,
    _weights,
    last_events,
    next_basket,
    shuffled_baskets,
    softmax_loss,
    states,
    windows,
)
from recsys_tasks.snapshot import DAY
from recsys_tasks.split import truth
from tests.interactions import START, interactions
from tests.models.worlds import catalog, material

N_ITEMS = 12
SMALL = {"dim": 16, "max_length": 8, "batch_size": 32, "dropout": 0.1, "learning_rate": 0.01, "temperature": 0.07}
SMALL |= {"text": False, "patience": 10, "half_life_days": None, "trend": 0.0}


def cycle(n_users=60, days=9, skip=()):
    """Customer u buys item u, u + 1, u + 2, ... a day each, round a circle of twelve."""
    rows = [(u, (u + day) % N_ITEMS, day) for u in range(n_users) for day in range(days) if (u + day) % 12 not in skip]
    return interactions(rows, n_users, N_ITEMS, days=days + 1)


def trained(log, vectors=None, start=None, validation=None, **config):
    learn = replace(material(log), start=start, validation=validation)
    learn = learn if vectors is None else replace(learn, text_vectors=vectors)
    return SASRec(SASRecConfig(**{**SMALL, **config})).fit(learn)


def scores(model, log):
    return model._scorer(log)(np.arange(log.n_users))


def following(log):
    """The item that comes next for each customer of ``cycle``."""
    return np.array([(log.item_idx[log.of_user(u)[-1]] + 1) % N_ITEMS for u in range(log.n_users)])


def test_the_item_that_follows_the_last_one_comes_first():
    log = cycle()
    model = trained(log, epochs=30, targets="all")
    assert (scores(model, log).argmax(1) == following(log)).mean() >= 0.95
    later = cycle(days=10)  # the same customers a day on, without learning again
    assert (scores(model, later).argmax(1) == following(later)).mean() >= 0.95


@pytest.fixture
def network():
    """A function that runs an untrained network, all of whose inputs are in use, over positions in a log."""
    config = SASRecConfig(**SMALL, blocks=2, heads=2, events=True, gaps=True)
    weights = _initial(config, N_ITEMS, 0, 2, np.random.default_rng(0))

    def run(log, events):
        batch = _inputs(log, events, np.array([-1.0, 0.5], np.float32))
        return states(config, weights, weights["ids"][np.maximum(batch["items"], 0)], batch).numpy()

    return run


def two_kinds():
    rng = np.random.default_rng(1)
    rows = [(u, int(rng.integers(N_ITEMS)), float(day), *((1.0, True), (0.5, False))[day % 2]) for u in range(4)
            for day in range(3 + u)]  # fmt: skip
    return interactions(rows, 4, N_ITEMS, days=10)


def test_a_later_event_does_not_change_what_was_known_before_it(network):
    log = two_kinds()
    events = last_events(log, np.arange(4), 8)
    before = network(log, events)
    log.item_idx[events[:, -1]] = (log.item_idx[events[:, -1]] + 1) % N_ITEMS
    after = network(log, events)
    np.testing.assert_array_equal(before[:, :-1], after[:, :-1])
    assert np.abs(before[:, -1] - after[:, -1]).max(1).min() > 1e-3


def test_padding_changes_nothing(network):
    log = two_kinds()
    events = last_events(log, np.arange(4), 8)
    lengths = (events >= 0).sum(1)
    for row, length in zip(events, lengths, strict=True):
        alone, padded = network(log, row[None, -length:]), network(log, row[None])
        np.testing.assert_allclose(padded[:, -length:], alone, atol=1e-5)


def test_kind_and_gap_of_an_event_are_heard(network):
    log, events = two_kinds(), np.array([[0, 1]])
    slower = replace(log, time=np.where(np.arange(len(log)) < 1, log.time - 40 * DAY, log.time))
    lighter = replace(log, weight=np.full_like(log.weight, 0.5), is_target=np.zeros_like(log.is_target))
    for other in (slower, lighter):
        assert np.abs(network(log, events)[:, -1] - network(other, events)[:, -1]).max() > 1e-3


def test_a_negative_that_is_the_target_does_not_count():
    right, wrong = np.array([1.0, 2.0], np.float32), np.array([[1.0, 0.0], [5.0, 2.0]], np.float32)
    found = softmax_loss(right, wrong, np.array([7, 8]), np.array([7, 9]), np.array([1.0, 3.0], np.float32))
    first = np.log(np.exp(1) + np.exp(0)) - 1  # item 7 is left out of its own negatives
    second = np.log(np.exp(2) + np.exp(5) + np.exp(2)) - 2
    assert float(found) == pytest.approx(first + 3 * second, rel=1e-5)


def test_drawn_negatives_learn_the_pattern_too():
    log = cycle()
    model = trained(log, epochs=40, targets="all", full_softmax=0, negatives=6)
    assert (scores(model, log).argmax(1) == following(log)).mean() >= 0.9


def test_what_comes_next_is_of_the_next_basket_and_a_basket_has_no_order():
    log = interactions([(0, 1, 1), (0, 2, 1), (0, 3, 2), (0, 4, 2), (0, 5, 3)], 1, 6, days=4)
    rng = np.random.default_rng(0)
    events = last_events(log, np.array([0]), 6)
    orders, targets = set(), [set() for _ in range(6)]
    for _ in range(50):
        shuffled = shuffled_baskets(events, log.time, rng)
        orders.add(tuple(shuffled[0]))
        for found, target in zip(targets, next_basket(shuffled, log.time, rng)[0], strict=True):
            found.add(int(target))
    assert orders == {(-1, *a, *b, 4) for a in ((0, 1), (1, 0)) for b in ((2, 3), (3, 2))}
    assert targets == [{-1}, {2, 3}, {2, 3}, {4}, {4}, {-1}]


def test_training_goes_through_the_whole_of_a_history_in_pieces_that_share_an_event():
    log = interactions([(1, 0, 0), *[(0, item % 6, item) for item in range(6)], (2, 0, 1), (2, 1, 2)], 4, 6, days=7)
    when = np.where((found := windows(log, 2)) < 0, -1, log.time[found] // DAY - log.time[0] // DAY)
    assert when.tolist() == [[3, 4, 5], [1, 2, 3], [-1, 0, 1], [-1, 1, 2]]
    assert log.user_idx[found].tolist()[:2] == [[0] * 3] * 2


def test_new_is_what_was_not_bought_before():
    log = interactions([(0, 1, 1, 1.0, False), (0, 1, 2), (0, 1, 3), (1, 1, 4), (0, 2, 5)], 2, 3, days=6)
    assert _is_new(log).tolist() == [True, True, False, True, True]
    assert np.unique(_kind(log)).tolist() == [-1.0, 1.0]


def test_the_best_epoch_is_kept_and_each_is_told_with_the_time_left(caplog):
    log = cycle()
    past = truth(log, log.as_of - 2 * DAY, log.as_of, "discovery")
    with caplog.at_level(logging.INFO, "recsys_tasks.models.sasrec"):
        model = trained(past.past, validation={"discovery": past}, epochs=12, patience=3)
    found = [point["ndcg@10"] for point in model.curve]
    assert model.config.epochs == int(np.argmax(found)) + 1
    learned = replace(material(past.past), validation={"discovery": past})
    assert model.validate(learned).mean() == pytest.approx(max(found))
    assert set(model.curve[0]) == {"epoch", "loss", "ndcg@10", "seconds"}
    told = r"sasrec: epoch 1 of at most 12: loss \d\.\d+, validation ndcg@10 0\.\d+, .* s an epoch, at most .* s left"
    assert re.fullmatch(told, caplog.messages[0])


def test_a_warm_start_needs_fewer_epochs_and_takes_new_items_in(tmp_path):
    log = cycle()
    yesterday = interactions(
        [
            (u, i, (t - log.time[0]) / DAY)
            for u, i, t in zip(log.user_idx, log.item_idx, log.time, strict=True)
            if i < 11
        ],
        60,
        11,
        10,
    )
    trained(yesterday, epochs=30, targets="all").save(tmp_path, catalog(11))
    start = SASRec.load(tmp_path)
    cold, warm = (trained(log, start=one, epochs=4, targets="all") for one in (None, start))
    right = [(scores(model, log).argmax(1) == following(log)).mean() for model in (cold, warm)]
    assert right[1] >= 0.9 > right[0] + 0.2
    assert warm.vectors_.shape == (12, 16)


def test_an_item_without_events_is_scored_by_its_text_or_not_at_all():
    """Item 11 was never bought; its text is that of item 3, so it follows item 2 as item 3 does."""
    text = np.eye(N_ITEMS, dtype=np.float32)
    text[11] = text[3]
    log = cycle(skip=[11])
    after_two = [u for u in range(log.n_users) if log.item_idx[log.of_user(u)[-1]] == 2]
    with_text = scores(trained(log, text, epochs=40, targets="all", text=True), log)[after_two]
    assert (np.sort(np.argsort(-with_text, axis=1)[:, :2], axis=1) == [3, 11]).all()
    without = scores(trained(log, epochs=2), log)
    assert (without[:, 11] == -np.inf).all()
    assert np.isfinite(without[:, :11]).all()


def test_a_seed_gives_the_same_model():
    log = cycle()
    one, same, other = (SASRec(SASRecConfig(**SMALL, epochs=2), seed).fit(material(log)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.vectors_, same.vectors_)
    assert np.abs(one.vectors_ - other.vectors_).max() > 0.01


def test_averaged_weights_and_dot_products_learn_the_pattern():
    log = cycle()
    model = trained(log, epochs=40, targets="all", average=0.9, temperature=None, weight_decay=0.01)
    assert (scores(model, log).argmax(1) == following(log)).mean() >= 0.9


def test_the_running_mean_of_items_that_no_step_touched_is_up_to_date():
    log = cycle(n_users=3, days=4)  # of twelve items, six
    config = SASRecConfig(**SMALL, average=0.5, full_softmax=0, negatives=2)
    rng, trained_items = np.random.default_rng(0), np.unique(log.item_idx)
    weights = _initial(config, N_ITEMS, 0, 1, rng)
    trainer = Trainer(config, weights, trained_items, np.zeros((N_ITEMS, 0), np.float32), 0)
    mean = {name: array.copy() for name, array in weights.items()}
    for step in range(1, 6):
        users = log.since(START + (step % 2) * 2 * DAY)  # every other step knows the later half alone
        pieces, weight = windows(users, config.max_length), _weights(users, config)
        trainer.epoch(_training_batches(users, pieces, weight, config, np.unique(_kind(log)), rng))
        keep = min(0.5, (1 + step) / (10 + step))
        for name, variable in trainer.variables.items():
            mean[name] = keep * mean[name] + (1 - keep) * variable.numpy()
    for name, found in trainer.weights().items():
        np.testing.assert_allclose(found, mean[name], rtol=1e-4, atol=1e-6)
    untouched = np.setdiff1d(np.arange(N_ITEMS), trained_items)
    np.testing.assert_array_equal(trainer.weights()["ids"][untouched], weights["ids"][untouched])


def test_text_is_whitened_and_a_warm_start_keeps_its_components():
    log, rng = cycle(), np.random.default_rng(0)
    text = (rng.normal(size=(N_ITEMS, 4)) * [1, 2, 3, 4] + 10).astype(np.float32)
    first = trained(log, text, text=True, epochs=1)
    seen = (text - first.mean_) @ first.matrix_
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(seen.T @ seen / N_ITEMS, np.eye(4) / 4, atol=1e-5)
    np.testing.assert_array_equal(trained(log, -text, start=first, text=True, epochs=1).matrix_, first.matrix_)
