"""Whatever is approximate is held against the exact thing."""

import sys

import numpy as np
import pytest

from recsys_tasks import nearest
from recsys_tasks.errors import ContractError
from recsys_tasks.nearest import NearestItems


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 32))
    found = (centres[rng.integers(0, 40, 3000)] + 0.5 * rng.normal(size=(3000, 32))).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def index(vectors):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "EXACT_UP_TO", 1000)
        found = NearestItems.build(vectors, 40, 0.98)
    assert found.searcher is not None
    return found


def test_exact_search_is_what_sorting_gives(vectors):
    rows, values = NearestItems(vectors).search(vectors[:5], 7)
    for query, found, value in zip(vectors[:5], rows, values, strict=True):
        scores = vectors @ query
        assert found.tolist() == np.argsort(-scores, kind="stable")[:7].tolist()
        assert value == pytest.approx(np.sort(scores)[::-1][:7])


def test_scann_finds_what_exact_search_finds(index, vectors):
    assert index.recall(10) >= 0.98
    rows, values = index.search(vectors[:100], 10)
    exact, _ = index.exact(vectors[:100], 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)]) >= 0.98
    assert (np.diff(values, axis=1) <= 1e-6).all()


def test_a_saved_index_answers_the_same_elsewhere(index, vectors, tmp_path):
    (tmp_path / "here").mkdir()
    index.save(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    loaded = NearestItems.load(tmp_path / "there")
    assert (loaded.search(vectors[:50], 10)[0] == index.search(vectors[:50], 10)[0]).all()
    assert (loaded.vectors == vectors).all()


def test_a_pickle_in_an_index_is_refused(index, tmp_path):
    index.save(tmp_path)
    (tmp_path / "scann" / "scann_docids.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ContractError, match="holds a pickle"):
        NearestItems.load(tmp_path)


def test_a_small_catalogue_is_searched_exactly(vectors):
    assert NearestItems.build(vectors, 40, 0.98).searcher is None


def test_without_scann_the_search_is_exact(vectors, monkeypatch, caplog):
    monkeypatch.setattr(nearest, "EXACT_UP_TO", 1000)
    monkeypatch.setitem(sys.modules, "scann", None)
    found = NearestItems.build(vectors, 40, 0.98)
    assert found.searcher is None
    assert found.recall(10) == 1.0
