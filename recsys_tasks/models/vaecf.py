"""``vaecf``: a variational autoencoder of the customer's row (Liang et al. 2018, "Variational Autoencoders for CF").

The network and its training are Cornac's ``VAECF``; scoring is ours: a batch at a time, from the history at the moment
of recommending, with no need of Cornac. A history enters the first layer as a sparse row, the mean of the encoder goes
through the decoder without sampling (section 2.4), and a score is what the decoder gives before softmax or sigmoid,
which would only cost time: they do not change the order.

Where Cornac differs from the paper: rows are not normalised and have no dropout, beta is constant instead of annealed,
and an epoch takes the customers in the same order. Where we differ from Cornac: its ``fit`` is called for a few epochs
at a time and goes on from its weights, so that validation can stop it; Adam starts anew with each call. Cornac sets
torch's global seed; ours is put back.
"""

import logging
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.sparse as sp

from recsys_tasks.errors import TrainingError
from recsys_tasks.models import base
from recsys_tasks.models.base import (
    Between,
    Dot,
    Material,
    Model,
    best_evidence,
    nearest_evidence,
)
from recsys_tasks.snapshot import DAY, Interactions

log = logging.getLogger(__name__)


class VAECFConfig(base.Config):
    """Configuration of ``vaecf``; names and meanings are Cornac's, defaults the best on validation of MovieLens-1M."""

    k: int = 128
    """width of the latent vector"""
    autoencoder_structure: tuple[int, ...] = ()
    """widths of the encoder's hidden layers; the decoder has them in reverse. Without any the network is linear"""
    act_fn: Literal["sigmoid", "tanh", "elu", "relu", "relu6"] = "tanh"
    likelihood: Literal["mult", "bern", "gaus", "pois"] = "mult"
    epochs: int = 100
    """most epochs; with a validation window, training stops when ndcg@10 there has not risen for ``PATIENCE`` looks"""
    epochs_a_look: int = 5
    """epochs between two looks at validation"""
    batch_size: int = 256
    learning_rate: float = 0.002
    """of Adam"""
    beta: float = 1.0
    """weight of the KL term"""
    window_days: float | None = None
    """only pairs whose newest event is at most this old take part, in training and in a history"""
    max_items: int = 20_000
    """only the items with most customers take part: the first and last layer grow with their number."""


PATIENCE = 3


class VAECF(Model):
    """A customer is what their history encodes to; nobody needs to have been there in training."""

    name = "vaecf"
    Config = VAECFConfig
    space: ClassVar = {
        "k": Between(32, 256, log=True),
        "act_fn": ("tanh", "elu", "relu"),
        "likelihood": ("mult", "bern"),
        "learning_rate": Between(3e-4, 1e-2, log=True),
        "batch_size": (128, 256, 512),
        "beta": Between(0.05, 2.0, log=True),
        "window_days": (None, 90.0, 180.0, 365.0),
    }

    def _fit(self, material: Material) -> None:
        import torch

        self.n_items_ = np.array([material.catalog.n_items])
        customers = np.diff(self._pairs(material.interactions).tocsc().indptr)
        most = np.argsort(-customers, kind="stable")[: self.config.max_items]
        self.items_ = np.sort(most[customers[most] > 0]).astype(np.int32)
        if not len(self.items_):
            raise TrainingError(f"{self.name}: no event in the last {self.config.window_days} days; raise window_days")
        rows = self._histories(material.interactions)
        rows = rows[np.diff(rows.indptr) > 0]
        data, config, cornac = _dataset(rows), self.config, self._recommender()
        best, best_epoch, done, started = -1.0, 0, 0, time.monotonic()
        state: dict[str, np.ndarray] = {}
        with torch.random.fork_rng(devices=[]):
            while done < config.epochs:
                cornac.n_epochs = min(config.epochs_a_look, config.epochs - done)
                cornac.seed = self.seed + done  # the same one would draw the same noise in every call
                cornac.is_fitted = False  # else going on is warned of
                cornac.fit(data)
                done += cornac.n_epochs
                self.weights_ = _weights(cornac.vae)
                loss = _loss(cornac.vae, rows, config.beta)
                line = f"epoch {done} of at most {config.epochs}: loss {loss:.2f}"
                left = (time.monotonic() - started) / done * (config.epochs - done)
                if not material.validation:
                    log.info("%s: %s, %.0f s left", self.name, line, left)
                    continue
                found = float(self.validate(material).mean())
                self.curve.append({"epoch": done, "loss": loss, "ndcg@10": found})
                log.info("%s: %s, validation ndcg@10 %.4f, at most %.0f s left", self.name, line, found, left)
                if found > best:
                    best, best_epoch, state = found, done, self._state()
                elif done - best_epoch >= PATIENCE * config.epochs_a_look:
                    break
        if state:
            self._restore(state)
            self.config = config.model_copy(update={"epochs": best_epoch})

    def _recommender(self) -> Any:
        """Return Cornac's model, untrained; it tells of no progress, for we do."""
        from cornac.models import VAECF as CornacVAECF

        names = ("k", "act_fn", "likelihood", "batch_size", "learning_rate", "beta")
        chosen = {name: getattr(self.config, name) for name in names}
        return CornacVAECF(autoencoder_structure=list(self.config.autoencoder_structure), verbose=False, **chosen)

    def _pairs(self, interactions: Interactions) -> sp.csr_matrix:
        """Return (n_users, n_items) float32, 1 for each pair of the last ``window_days``."""
        if self.config.window_days is not None:
            oldest = interactions.as_of - round(self.config.window_days * DAY)
            interactions = interactions.since(oldest)
        pairs = interactions.matrix().astype(np.float32)
        pairs.data[:] = 1
        return pairs

    def _histories(self, interactions: Interactions) -> sp.csr_matrix:
        """Return (n_users, n_network_items): the columns of ``_pairs`` that take part."""
        return self._pairs(interactions)[:, self.items_]

    def _scorer(self, histories: Interactions) -> Callable[[np.ndarray], np.ndarray]:
        own = self._histories(histories)
        told = np.diff(own.indptr) > 0
        n_items = int(self.n_items_[0])
        widen = 2 * len(self.items_) > n_items  # multiplying by a few zeros takes less than spreading columns out
        weights = self._widened() if widen else self.weights_

        def score(users: np.ndarray) -> np.ndarray:
            found = self._forward(own[users], weights)
            found[~told[users]] = -np.inf
            if widen:
                return found
            scores = np.full((len(users), n_items), -np.inf, np.float32)
            scores[:, self.items_] = found
            return scores

        return score

    def _dot(self, histories: Interactions) -> Dot:
        own, weights = self._histories(histories), self._widened()
        told = np.diff(own.indptr) > 0
        last = f"decoder{len(self.config.autoencoder_structure)}"

        def queries(users: np.ndarray) -> np.ndarray:
            hidden = self._hidden(own[users], self.weights_).numpy()
            hidden[~told[users]] = np.nan
            return hidden

        return Dot(weights[f"{last}_weight"].T, weights[f"{last}_bias"], queries)

    def _widened(self) -> dict[str, np.ndarray]:
        """Return the weights with a last layer for the whole catalogue; its bias is -inf for items without part."""
        last, n_items = f"decoder{len(self.config.autoencoder_structure)}", int(self.n_items_[0])
        weight = np.zeros((len(self.weights_[f"{last}_weight"]), n_items), np.float32)
        bias = np.full(n_items, -np.inf, np.float32)
        weight[:, self.items_], bias[self.items_] = self.weights_[f"{last}_weight"], self.weights_[f"{last}_bias"]
        return {**self.weights_, f"{last}_weight": weight, f"{last}_bias": bias}

    def _forward(self, rows: sp.csr_matrix, weights: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the (n, outputs) of the decoder for (n, n_network_items) histories of ones."""
        import torch

        last = f"decoder{len(self.config.autoencoder_structure)}"
        weight, bias = (torch.from_numpy(weights[f"{last}_{kind}"]) for kind in ("weight", "bias"))
        with torch.inference_mode():
            return torch.addmm(bias, self._hidden(rows, weights), weight).numpy()

    def _hidden(self, rows: sp.csr_matrix, weights: Mapping[str, np.ndarray]) -> Any:
        """Return the (n, d) tensor that the last layer is multiplied with."""
        import torch

        functional, depth = torch.nn.functional, len(self.config.autoencoder_structure)
        act = getattr(functional, self.config.act_fn)
        layers = [*(f"encoder{n}" for n in range(depth)), "mean", *(f"decoder{n}" for n in range(depth))]
        weight, bias = (
            {name: torch.from_numpy(weights[f"{name}_{kind}"]) for name in layers} for kind in ("weight", "bias")
        )
        places, starts = (torch.from_numpy(part.astype(np.int64)) for part in (rows.indices, rows.indptr[:-1]))
        with torch.inference_mode():
            x = functional.embedding_bag(places, weight[layers[0]], starts, mode="sum")  # adds up what is in a history
            x += bias[layers[0]]
            for before, name in pairwise(layers):
                x = torch.addmm(bias[name], x if before == "mean" else act(x), weight[name])
            return act(x) if depth else x

    def evidence(self, histories: Interactions, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Return the history item that the decoder treats most alike."""
        return best_evidence(histories.bought, users, items, nearest_evidence(self.item_vectors().__getitem__))

    def item_vectors(self) -> np.ndarray:
        """Return the decoder's last layer, of unit length; zero for items that take no part."""
        return self._directions(np.arange(int(self.n_items_[0])))

    def _directions(self, items: np.ndarray) -> np.ndarray:
        """Return (n, d) float32 of ``item_vectors``."""
        place = np.minimum(np.searchsorted(self.items_, items), len(self.items_) - 1)
        vectors = self.weights_[f"decoder{len(self.config.autoencoder_structure)}_weight"][:, place].T
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        vectors[self.items_[place] != items] = 0
        return vectors

    def _state(self) -> dict[str, np.ndarray]:
        return {"items": self.items_, "n_items": self.n_items_, **self.weights_}

    def _restore(self, state: dict[str, np.ndarray]) -> None:
        self.items_, self.n_items_ = state["items"], state["n_items"]
        self.weights_ = {name: array for name, array in state.items() if name not in ("items", "n_items")}


def _dataset(rows: sp.csr_matrix) -> Any:
    """Return Cornac's form of (n_users, n_items) rows without an empty one; ids are the numbers themselves."""
    from cornac.data import Dataset

    n_users, n_items = rows.shape
    pairs = rows.tocoo()
    return Dataset(
        num_users=n_users,
        num_items=n_items,
        uid_map={n: n for n in range(n_users)},
        iid_map={n: n for n in range(n_items)},
        uir_tuple=(pairs.row.astype(np.int64), pairs.col.astype(np.int64), pairs.data),
    )


def _weights(vae: Any) -> dict[str, np.ndarray]:
    """Return copies of the network's matrices, (inputs, outputs), and biases; the variance's are for training alone."""
    import torch

    layers = {f"encoder{n}": layer for n, layer in enumerate(vae.encoder[::2])}
    layers |= {f"decoder{n}": layer for n, layer in enumerate(vae.decoder[::2])}
    layers["mean"] = vae.enc_mu
    with torch.no_grad():
        matrices = {f"{name}_weight": layer.weight.numpy().T.copy() for name, layer in layers.items()}
        return matrices | {f"{name}_bias": layer.bias.numpy().copy() for name, layer in layers.items()}


def _loss(vae: Any, rows: sp.csr_matrix, beta: float) -> float:
    """Return the mean loss of at most 1000 of the rows, evenly taken."""
    import torch

    sample = rows[:: -(-rows.shape[0] // 1000)]
    with torch.no_grad():
        x = torch.from_numpy(sample.toarray())
        return float(vae.loss(x, *vae(x), beta))
