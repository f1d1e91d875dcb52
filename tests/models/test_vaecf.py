"""``vaecf`` scores as Cornac does, without Cornac, and anybody who has a history."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from recsys_tasks.errors import TrainingError
from recsys_tasks.models import model_class
from recsys_tasks.models.vaecf import VAECF, VAECFConfig
from tests.conftest import ROOT
from tests.interactions import interactions
from tests.models.test_models import lists, model, with_validation
from tests.models.worlds import SIZE, catalog, checkerboard, material


class WithCornac(VAECF):
    """Keeps the trained model of Cornac."""

    def _recommender(self):
        self.cornac = super()._recommender()
        return self.cornac


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"autoencoder_structure": ()},
        {"autoencoder_structure": (12, 9), "act_fn": "relu6"},
        {"act_fn": "elu", "likelihood": "bern"},
        {"act_fn": "sigmoid", "likelihood": "pois"},
        {"act_fn": "relu", "likelihood": "gaus"},
    ],
)
def test_scores_of_a_batch_are_those_of_cornac_before_the_last_function(config):
    log = checkerboard()
    fitted = WithCornac(VAECFConfig(**{"k": 5, "autoencoder_structure": (12,), "epochs": 4, **config}))
    fitted.fit(material(log))
    ours = torch.from_numpy(fitted._scorer(log)(np.arange(SIZE)))
    ours = torch.softmax(ours, 1) if fitted.config.likelihood == "mult" else torch.sigmoid(ours)
    cornacs = np.stack([fitted.cornac.score(user) for user in range(SIZE)])
    np.testing.assert_allclose(ours.numpy(), cornacs, rtol=1e-5)


def test_a_customer_who_came_after_training_gets_a_list_of_their_own_taste():
    fitted = model("vaecf").fit(material(checkerboard()))
    before = checkerboard()
    rows = [(SIZE, item, 20) for item in (2, 4, 8)] + [(SIZE + 1, item, 20) for item in (1, 5, 9)]
    rows += list(zip(before.user_idx.tolist(), before.item_idx.tolist(), [1] * len(before), strict=True))
    ranked = lists(fitted, interactions(rows, SIZE + 2, SIZE, days=28), 5, exclude_seen=True, users=[SIZE, SIZE + 1])
    assert (ranked.items % 2 == [[0], [1]]).all()
    assert not ranked.filled.any()


def test_more_events_than_in_training_change_the_list():
    fitted = model("vaecf").fit(material(checkerboard()))
    once = interactions([(0, item, 20) for item in (0, 2, 4)], 1, SIZE, days=28)
    more = [(0, item, 21) for item in range(1, 20, 2)]
    turned = interactions([(0, item, 20) for item in (0, 2, 4)] + more, 1, SIZE, days=28)
    assert lists(fitted, once, 3, users=[0]).items[0, 0] % 2 == 0
    assert lists(fitted, turned, 3, users=[0]).items[0, 0] % 2 == 1


def test_only_the_items_with_most_customers_take_part():
    log = interactions([(u, i, 1) for u in range(6) for i in range(4) if i <= u % 4], 6, 5, days=7)
    fitted = model("vaecf", max_items=2).fit(material(log))
    scores = fitted._scorer(log)(np.arange(6))
    assert np.isfinite(scores).tolist() == [[True, True, False, False, False]] * 6
    assert fitted.item_vectors().any(1).tolist() == [True, True, False, False, False]


def test_events_before_the_window_count_neither_in_training_nor_in_a_history():
    log = interactions([(0, 0, 1), (0, 1, 95), (1, 0, 1), (2, 1, 96), (2, 2, 97)], 3, 3, days=100)
    fitted = model("vaecf", window_days=10).fit(material(log))
    assert np.isfinite(fitted._scorer(log)(np.arange(3))).tolist() == [
        [False, True, True],
        [False] * 3,
        [False, True, True],
    ]
    with pytest.raises(TrainingError, match=r"no event in the last 1\.0 days; raise window_days"):
        model("vaecf", window_days=1).fit(material(log))


def test_validation_chooses_the_number_of_epochs():
    fitted = model("vaecf", epochs_a_look=2, epochs=30).fit(with_validation(checkerboard(), days=7))
    best = max(fitted.curve, key=lambda point: point["ndcg@10"])
    assert fitted.config.epochs == best["epoch"]
    assert [point["epoch"] for point in fitted.curve] == list(range(2, 2 * len(fitted.curve) + 1, 2))
    assert fitted.validate(with_validation(checkerboard(), days=7)).mean() == best["ndcg@10"]


def test_the_seed_decides_and_the_random_numbers_of_others_stay_as_they_were():
    first = model("vaecf").fit(material(checkerboard()))
    torch.manual_seed(3)
    expected = torch.rand(2).tolist()
    torch.manual_seed(3)
    again = model("vaecf").fit(material(checkerboard()))
    assert torch.rand(2).tolist() == expected
    other = model_class("vaecf")(again.config, seed=1).fit(material(checkerboard()))
    assert (first.weights_["mean_weight"] == again.weights_["mean_weight"]).all()
    assert (first.weights_["mean_weight"] != other.weights_["mean_weight"]).any()


def test_a_loaded_model_needs_no_cornac(tmp_path):
    model("vaecf").fit(material(checkerboard())).save(tmp_path, catalog(SIZE))
    code = (
        "import sys, pathlib\n"
        "from tests.models.test_models import *\n"
        "loaded = model_class('vaecf').load(pathlib.Path(sys.argv[1]), catalog(SIZE))\n"
        "assert lists(loaded, checkerboard(), 10).items.shape == (SIZE, 10)\n"
        "print([name for name in sys.modules if name.partition('.')[0] == 'cornac'])\n"
    )
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, check=True)
    assert told.stdout.decode().strip() == "[]"
