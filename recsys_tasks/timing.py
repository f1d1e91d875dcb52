"""What each step of a night takes: wall seconds, and the most memory its process held meanwhile.

``times/<shop>/<night>/<step>.json``, beside the lake, is the record of a step (and recipe, or shard); a new run
replaces it.
"""

import functools
import inspect
import json
import logging
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

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
    def wrapped(night: Night, *args: P.args, **kwargs: P.kwargs) -> R:
        if not night.tracked:
            return step(night, *args, **kwargs)
        began, started = time.time(), time.monotonic()
        _forget_peak()
        result = step(night, *args, **kwargs)
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


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET)


def _peak_mb() -> float:
    """The most memory held since ``_forget_peak``, or where the system cannot tell, in the life of the process."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(_PEAK)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
