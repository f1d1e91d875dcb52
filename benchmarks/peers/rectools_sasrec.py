"""Train RecTools' SASRec and print the seconds of each epoch as JSON.

A program of its own for an interpreter of its own: RecTools 0.19 needs numpy < 2, so it cannot live with the product.

    python benchmarks/peers/rectools_sasrec.py EVENTS.csv '{"n_factors": 64, ...}' EPOCHS
"""

import json
import sys
import time
from typing import ClassVar

import pandas as pd
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class Clock(Callback):
    """Seconds from the start of each epoch to its end; of the class, since RecTools trains a copy of the trainer."""

    seconds: ClassVar[list[float]] = []

    def on_train_epoch_start(self, *_: object) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def on_train_epoch_end(self, *_: object) -> None:
        """Stop it."""
        self.seconds.append(time.monotonic() - self.started)


def main(events: str, config: str, epochs: str) -> None:
    """Train on a CSV file of user_id, item_id, datetime, weight."""

    def trainer() -> Trainer:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        return Trainer(
            max_epochs=int(epochs), accelerator="cpu", callbacks=[Clock()], enable_model_summary=False, **quiet
        )

    data = Dataset.construct(pd.read_csv(events, parse_dates=["datetime"]))
    SASRecModel(**json.loads(config), get_trainer_func=trainer).fit(data)
    print(json.dumps(Clock.seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
