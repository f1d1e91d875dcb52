"""Text becomes vectors: the right ones, once."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, DistilBertConfig, DistilBertModel, DistilBertTokenizerFast

from recsys_tasks.embed import Encoder, embed
from recsys_tasks.errors import ContractError
from recsys_tasks.ingest import ingest
from recsys_tasks.night import Night


@pytest.fixture
def small_encoder(tmp_path):
    """A DistilBERT of two layers with random weights, saved as Hugging Face saves one."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "mug", "blue", "plate", "a", "very", "large"]
    (folder / "vocab.txt").write_text("\n".join(words))
    DistilBertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=len(words), dim=16, hidden_dim=32, n_layers=2, n_heads=2)
    DistilBertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def night(home, tmp_path, small_encoder):
    """Write a shop whose items carry these titles, and return its night."""

    def of(titles):
        rows = [f"u,{item},2020-01-0{1 + n % 9}T00:00:00Z,{title}" for n, (item, title) in enumerate(titles.items())]
        (tmp_path / "events.csv").write_text("\n".join(["user,item,time,title", *rows]) + "\n")
        (tmp_path / "shop.yaml").write_text(
            "name: s\nencoder: " + small_encoder + "\nsource:\n  format: tabular\n  events:\n    path: events.csv\n"
            "    columns: {user_id: user, item_id: item, timestamp: time}\n  items: {columns: {title: title}}\n"
        )
        return Night(str(tmp_path / "shop.yaml"), "2020-02-01T00:00:00+00:00", 1, [])

    return of


def vectors_of(night):
    folder = night.lake.path(embed(night, ingest(night)))
    return np.load(folder / "unique.npy")[np.load(folder / "row.npy")].astype(np.float32)


def test_a_vector_is_the_mean_of_the_tokens_without_padding(small_encoder):
    texts = ["red mug", "a very very large blue plate", "plate"]
    found = Encoder(small_encoder).encode(texts).astype(np.float32)
    tokenizer, model = AutoTokenizer.from_pretrained(small_encoder), AutoModel.from_pretrained(small_encoder).eval()
    for text, vector in zip(texts, found, strict=True):  # one by one there is no padding
        with torch.inference_mode():
            mean = model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
        assert vector == pytest.approx(mean / np.linalg.norm(mean), abs=2e-3)


def test_the_packaged_encoder_puts_like_texts_together():
    apples, pears, drill = Encoder().encode(["green apples", "ripe pears", "cordless drill"]).astype(np.float32)
    assert np.linalg.norm(apples) == pytest.approx(1, abs=1e-2)
    assert apples @ pears > apples @ drill + 0.1


def test_the_same_text_is_encoded_once_and_never_again(night, monkeypatch):
    asked = []
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, texts: asked.extend(texts) or encode(self, texts))
    first = vectors_of(night({"1": "red mug", "2": "red mug", "3": "blue plate"}))
    assert asked == ["blue plate", "red mug"]
    assert (first[0] == first[1]).all()
    again = vectors_of(night({"1": "red mug", "3": "blue plate", "4": "large plate"}))
    assert asked == ["blue plate", "red mug", "large plate"]
    assert (again[0] == first[0]).all()


def test_an_item_without_text_has_no_vector(night):
    found = vectors_of(night({"1": "red mug", "2": ""}))
    assert found[0].any()
    assert not found[1].any()


def test_another_encoder_does_not_take_the_vectors_of_the_first(small_encoder):
    assert Encoder(small_encoder).id != Encoder().id
    assert Encoder("distilbert-base-uncased").id != Encoder().id


def test_an_encoder_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ContractError, match="cannot be loaded") as caught:
        Encoder(str(tmp_path)).encode(["a"])
    assert str(tmp_path) in str(caught.value)
    assert "without 'encoder' in the shop file" in str(caught.value)
