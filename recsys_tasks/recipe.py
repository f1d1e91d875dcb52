"""A recipe is a model with the configuration a person chose.

Champions are recipes, not artefacts: tonight's weights are made tonight.
"""

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from recsys_tasks.contract import VIEWS
from recsys_tasks.errors import ShopFileError
from recsys_tasks.lake import Lake, code_fingerprint, fingerprint
from recsys_tasks.models import STAGES, Material, Model, model_class
from recsys_tasks.shop import Shop
from recsys_tasks.simulation.visits import Visits
from recsys_tasks.snapshot import Catalog, Interactions, Snapshot
from recsys_tasks.split import Truth, Windows, truth

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """``text`` is the model's name, or the name and the JSON of its configuration: ``ease {"max_items": 4000}``."""

    text: str

    @classmethod
    def of(cls, model: str, config: dict[str, Any]) -> "Recipe":
        """Return the recipe of a model with the values a shop file sets.

        Raises
        ------
        ShopFileError
            An unknown or bad value in ``config``.

        """
        try:
            model_class(model).Config(**config)
        except ValidationError as error:
            faults = "; ".join(f"models.{model}.{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
            raise ShopFileError(f"{faults}. {model} takes {list(model_class(model).Config.model_fields)}") from error
        return cls(f"{model} {json.dumps(config, sort_keys=True)}" if config else model)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.text.partition(" ")[0]

    @property
    def label(self) -> str:
        """The text for tables and plots, cut where it is long."""
        return self.text if len(self.text) <= 40 else f"{self.text[:39]}…"

    @property
    def stage(self) -> int:
        """1, or one more than that of the models of the night that it reads."""
        return STAGES.get(self.model, 1)

    @property
    def config(self) -> dict[str, Any]:
        """The values a person set."""
        return json.loads(self.text.partition(" ")[2] or "{}")


@dataclass(frozen=True)
class Shelf:
    """The catalogue, interactions and text vectors of one snapshot, read once."""

    lake: Lake
    shop: Shop
    snapshot: str
    vectors: str
    catalog: Catalog
    interactions: Interactions

    @classmethod
    def open(cls, lake: Lake, shop: Shop, snapshot: str, vectors: str) -> "Shelf":
        """Read what ingest and embed wrote."""
        found = Snapshot(lake, snapshot)
        return cls(lake, shop, snapshot, vectors, found.catalog(), found.interactions(shop))

    @property
    def text_vectors(self) -> np.ndarray:
        """(n_items, d) float32; see embed."""
        folder = self.lake.path(self.vectors)
        return np.load(folder / "unique.npy").astype(np.float32)[np.load(folder / "row.npy")]

    @property
    def attributes(self) -> dict[str, np.ndarray]:
        """Name -> (n_users,) text; see ``Snapshot.attributes``."""
        return Snapshot(self.lake, self.snapshot).attributes(self.interactions.user_ids)

    def model_id(
        self, recipe: Recipe, end: int, sources: Mapping[str, str] | None = None, start: str | None = None
    ) -> str:
        """Return the lake entry of a recipe trained on all before ``end``; it may not be there yet."""
        inputs = {"recipe": recipe.text, "snapshot": self.snapshot, "vectors": self.vectors, "end": end}
        if sources:
            inputs["sources"] = dict(sources)
        if start:
            inputs["start"] = start
        return f"models/{recipe.model}-{fingerprint(inputs)}"

    def model_ids(self, recipes: Sequence[str], end: int, starts: Mapping[str, str]) -> dict[str, str]:
        """Return the entry of each recipe; what reads other models depends on which of them are there now."""
        return {text: self._entry(text, recipes, end, starts) for text in recipes}

    def sources(self, reader: str, recipes: Sequence[str], end: int, starts: Mapping[str, str]) -> dict[str, str]:
        """Return name -> entry of the models that a recipe reads: those of the stage before it that are there.

        Of two of a name it reads the first recipe's.
        """
        found: dict[str, str] = {}
        for text in recipes:
            recipe = Recipe(text)
            if recipe.stage == Recipe(reader).stage - 1 and recipe.model not in found:
                entry = self._entry(text, recipes, end, starts)
                if self.lake.has(entry):
                    found[recipe.model] = entry
        return dict(sorted(found.items()))

    def _entry(self, text: str, recipes: Sequence[str], end: int, starts: Mapping[str, str]) -> str:
        return self.model_id(Recipe(text), end, self.sources(text, recipes, end, starts), starts.get(text))

    def load(self, model_id: str) -> Model:
        """Return a trained model, with its sources where it has some."""
        manifest = self.lake.manifest(model_id)
        sources = self._loaded(manifest["sources"])
        return model_class(manifest["model"]).load(self.lake.path(model_id), self.catalog, sources)

    def fit(
        self, recipe: Recipe, windows: Windows, sources: Mapping[str, str] | None = None, start: str | None = None
    ) -> str:
        """Train a recipe on the fit window, choosing on validation; return its id in the lake.

        ``sources`` are the entries of the models it reads, by name, trained on the same window; ``start`` is the entry
        whose weights training begins with.
        """
        sources = sources or {}
        model_id = self.model_id(recipe, windows.fit_end, sources, start)
        if self.lake.has(model_id):
            log.info("%s: already trained on the same data, reused", model_id)
            return model_id
        material = replace(self.lesson(windows), sources=self._loaded(sources), start=self._begun(start))
        started = time.monotonic()
        model = model_class(recipe.model)(model_class(recipe.model).Config(**recipe.config)).fit(material)
        described: dict[str, Any] = {"end": windows.fit_end, "validation_end": windows.validation_end, "start": start}
        described["seconds"] = round(time.monotonic() - started, 3)
        return self._save(model, model_id, recipe, sources, described)

    def seconds(self, model_id: str) -> float:
        """Return how long a model and all that it reads took to train."""
        manifest = self.lake.manifest(model_id)
        return manifest["seconds"] + sum(self.seconds(entry) for entry in manifest["sources"].values())

    def lesson(self, windows: Windows) -> Material:
        """Return the fit window, and validation to choose on."""
        validation = {view: truth(self.interactions, windows.fit_end, windows.validation_end, view) for view in VIEWS}
        material = self._material(self.interactions.before(windows.fit_end), validation=validation)
        return replace(material, visits=lambda: Visits.read(Snapshot(self.lake, self.snapshot), self.shop))

    def refit(self, model_id: str, windows: Windows) -> str:
        """Train a model (and its sources) again on everything before ``as_of``, with what validation chose.

        A model that began with earlier weights was chosen few epochs: its refit goes on from it. Returns the new id.
        """
        manifest = self.lake.manifest(model_id)
        recipe = Recipe(manifest["recipe"])
        start = model_id if manifest["start"] else None
        sources = {name: self.refit(entry, windows) for name, entry in manifest["sources"].items()}
        refitted = self.model_id(recipe, windows.as_of, sources, start)
        if self.lake.has(refitted):
            log.info("%s: already refitted on the same data, reused", refitted)
            return refitted
        material = self._material(self.interactions, sources, start)
        described = {"end": windows.as_of, "validation_end": None, "start": start}
        return self._save(self.load(model_id).refit(material), refitted, recipe, sources, described)

    def _material(
        self,
        known: Interactions,
        sources: Mapping[str, str] | None = None,
        start: str | None = None,
        validation: Mapping[str, Truth] | None = None,
    ) -> Material:
        return Material(
            known,
            self.catalog,
            self.text_vectors,
            validation,
            attributes=self.attributes,
            sources=self._loaded(sources or {}),
            start=self._begun(start),
        )

    def _loaded(self, sources: Mapping[str, str]) -> dict[str, Model]:
        return {name: self.load(entry) for name, entry in sources.items()}

    def _begun(self, start: str | None) -> Model | None:
        """Return the model that training begins with, of whatever catalogue."""
        if start is None:
            return None
        return model_class(self.lake.manifest(start)["model"]).load(self.lake.path(start))

    def _save(
        self, model: Model, model_id: str, recipe: Recipe, sources: Mapping[str, str], described: Mapping[str, Any]
    ) -> str:
        manifest = {
            "model": model.name,
            "recipe": recipe.text,
            "snapshot": self.snapshot,
            "sources": dict(sources),
            "code": code_fingerprint(),
            **described,
        }
        with self.lake.create(model_id, manifest) as folder:
            model.save(folder, self.catalog)
        return model_id


def starts(lake: Lake, recipes: Iterable[Recipe], windows: Windows) -> dict[str, str]:
    """Return recipe -> entry that tonight's training may begin with: of the same recipe, its last night.

    Neither its fit window nor its validation reaches beyond tonight's, so it knows nothing of tonight's test window,
    and less than tonight's fit window holds. Weights of another version of the code are not begun with.
    """
    able = {recipe.text for recipe in recipes if model_class(recipe.model).warm_starts}
    found: dict[str, tuple[int, str]] = {}
    for entry in lake.entries("models") if able else []:
        manifest = lake.manifest(entry)
        if (
            manifest["recipe"] in able
            and manifest.get("code") == code_fingerprint()
            and manifest["end"] < windows.fit_end
            and manifest["validation_end"] is not None  # a refit was not validated
            and manifest["validation_end"] <= windows.validation_end
        ):
            found[manifest["recipe"]] = max(found.get(manifest["recipe"], (0, "")), (manifest["end"], entry))
    return {recipe: entry for recipe, (_, entry) in found.items()}
