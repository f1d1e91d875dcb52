"""The versions that the form of ``rollback`` offers, read while Airflow parses it: one small file, nothing heavy."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

TAIL = 64_000
"""Bytes of the ledger that are read, a hundred lines: the versions that are kept stand at its end."""


def choices() -> tuple[dict[str, str], str | None]:
    """Return version -> what people know it by, the one that served last first, and the version that serves now.

    What serves now is no choice. Without a lake there is none; a file that cannot be read offers nothing, for a form
    must not fail where the roll-back itself says what is wrong.
    """
    lists = Path(os.environ.get("NIGHTCART_HOME", "var")) / "lake" / "recommendations"
    told, now = [], None
    with suppress(OSError), (lists / "ledger.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        told += file.read().splitlines()
    with suppress(OSError, ValueError, KeyError):
        last = (lists / "home" / "_CURRENT.json").read_bytes()
        now = json.loads(last)["version"]
        told.append(last)
    found: dict[str, str] = {}
    for line in reversed(told):
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            said = json.loads(line)
            version = said["version"]
            if version not in (now, *found) and (lists / "home" / f"version={version}" / "_MANIFEST.json").is_file():
                found[version] = _label(said)
    return found, now


def _label(line: dict[str, Any]) -> str:
    champions = ", ".join(
        f"{p} {won['recipe'].partition(' ')[0]}" for p, won in sorted(line.get("champions", {}).items(), reverse=True)
    )
    as_of = f"as of {line['as_of'][:16].replace('T', ' ')}" if line.get("as_of") else line["version"]
    return f"{as_of}; {champions or 'champions not told'}; served from {line['at'][:16].replace('T', ' ')} UTC"
