"""Every error Nightcart raises on purpose.

NightcartError
├── ShopFileError        the shop file: unknown key, bad value, missing file
├── SourceError          a source file or table: unreadable, a column missing
├── ContractError        the data: an empty night, as_of before the log begins, a naive instant, a propensity of 0
├── NotFittedError       a model was asked before it learned
├── NothingInLake        an id, version or placement the lake does not hold
├── TrainingError        no model could be trained, or one learned something that is not a number
├── CheckFailed          tonight's lists break the contract and are not published
└── TemporarilyUnavailable   Redis, MLflow, the shop's database or a disk did not answer: the only kind worth a retry

A message says what was expected, what came, and what to do.
"""


class NightcartError(Exception):
    """Base of the tree. Trying again with the same inputs gives the same error."""


class ShopFileError(NightcartError):
    """The shop file has an unknown key or a bad value; the message names file and field."""


class SourceError(NightcartError):
    """A source file or table cannot be read or lacks a column; the message names it."""


class ContractError(NightcartError):
    """The data as a whole cannot be used, e.g. no event before ``as_of``, or probabilities that do not sum to 1."""


class NotFittedError(NightcartError):
    """A model was asked for recommendations before ``fit`` or ``load``."""


class NothingInLake(NightcartError):
    """The lake does not hold what was asked for; the message names the step that writes it."""


class TrainingError(NightcartError):
    """Training gave nothing that may be used."""


class CheckFailed(NightcartError):
    """The independent checker found rows that break the contract."""


class TemporarilyUnavailable(NightcartError):
    """An outside service did not answer. The one error of this tree that a retry can mend."""
