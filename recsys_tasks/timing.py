"""What each step of a night takes: wall seconds, and the most memory its process held meanwhile.

``times/<shop>/<night>/<step>.json``, beside the lake, is the record of a step (and recipe, or shard); a new run
replaces it.
"""

import errno
import functools
import inspect
import json
import logging
import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from recsys_tasks.errors import TemporarilyUnavailable
from recsys_tasks.lake import MANIFEST, Lake, replace_json
from recsys_tasks.night import Night
from recsys_tasks.settings import Settings

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
NIGHTS_KEPT = 14
_PEAK, _RESET = "VmHWM:", "5"
"""A line of ``/proc/self/status``, and what begins it anew; see proc(5)."""


def timed(step: Callable[Concatenate[Night, P], R]) -> Callable[Concatenate[Night, P], R]:
    """Have a step's function tell what it took. ``reused``: it returned an entry that was there when it began.

    Of a step with an argument ``recipe`` or ``shard`` there is a record for each. A step that fails leaves none, and so
    does a night that is not tracked.
    """
    signature = inspect.signature(step)

    @functools.wraps(step)
    @_told_when_a_disk_is_full()
    def wrapped(night: Night, *args: P.args, **kwargs: P.kwargs) -> R:
        began, started = time.time(), time.monotonic()
        _forget_peak()
        with night.lake.at_work():
            result = step(night, *args, **kwargs)
        if not night.tracked:
            return result
        given = signature.bind(night, *args, **kwargs).arguments
        of = given.get("recipe", given.get("shard"))
        told: dict[str, Any] = {"step": step.__name__, "of": of}
        told |= {"at": datetime.fromtimestamp(began, UTC).isoformat()}
        told |= {"seconds": time.monotonic() - started, "peak_mb": _peak_mb()}
        told |= {"reused": _was_there(night.lake, result, began)}
        name = f"{step.__name__}-{sha256(str(of).encode()).hexdigest()[:8]}"
        replace_json(_folder(night) / f"{name}.json", told)
        return result

    return wrapped


def times(night: Night) -> list[dict[str, Any]]:
    """Return what the steps of a night took, in the order in which they began; older nights' records go."""
    folder = _folder(night)
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    for old in sorted(folder.parent.glob("*"))[:-NIGHTS_KEPT]:
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)
    return sorted(found, key=lambda told: told["at"])


def _folder(night: Night) -> Path:
    return Settings().home / "times" / night.shop.name / f"{night.instant:%Y%m%dT%H%M%S}"


def _was_there(lake: Lake, result: Any, began: float) -> bool:
    """Whether a step returned an entry that it did not make: its manifest is older than the step."""
    made = lake.path(result) / MANIFEST if isinstance(result, str) else Path()
    return made.is_file() and made.stat().st_mtime < began


_FULL = (
    "a disk is full: {error}. The last version stays current. Look at the disks of {home} and of the temporary folder, "
    "free some space (keep_days and keep_versions of the shop file say what is kept), and run the night again: what is "
    "done is not done again"
)
_TELLS_OF_FULL_DISK = re.compile(
    f"{os.strerror(errno.ENOSPC)}|database or disk is full|\\d+ requested and \\d+ written"
)
"""DuckDB's and Arrow's words, SQLite's, and NumPy's of an array of which only a part found room."""


@contextmanager
def _told_when_a_disk_is_full() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if _is_of_full_disk(error):
            raise TemporarilyUnavailable(_FULL.format(home=Settings().home.absolute(), error=error)) from error
        raise


def _is_of_full_disk(error: BaseException | None) -> bool:
    """Tell whether an error, or what it came of, is that a disk or a quota is full; libraries wrap it in their own."""
    while error:
        is_told = _TELLS_OF_FULL_DISK.search(str(error))
        if is_told or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET)


def _peak_mb() -> float:
    """The most memory held since ``_forget_peak``, or where the system cannot tell, in the life of the process."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(_PEAK)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
