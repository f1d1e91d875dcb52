"""Who and what was forgotten, so that no night learns it again from the shop's own files.

``forgotten/<shop>.json`` in the lake has a line for each: a hash of the id, keyed by a random number of this lake, and
the instant. From the id one finds the line, not from the line the id; but who holds the file and has an id to try can
tell whether it is there, and so can the next night, for it must.

A customer who comes back is known from the instant on, by what happens then. An item's id is forgotten for good.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from recsys_tasks.errors import ContractError
from recsys_tasks.lake import Lake, replace_json

Kind = Literal["user", "item"]


@dataclass
class Tombstones:
    """Those of one shop."""

    path: Path

    @classmethod
    def of(cls, lake: Lake, shop: str) -> "Tombstones":
        """Return a shop's tombstones; there may be none yet."""
        return cls(lake.root / "forgotten" / f"{shop}.json")

    @cached_property
    def content(self) -> dict[str, Any]:
        """``key`` (hexadecimal) and ``forgotten``: ``kind``, ``hash``, ``at`` (ISO 8601, UTC) and ``done`` of each."""
        try:
            return json.loads(self.path.read_text())
        except FileNotFoundError:
            return {"key": secrets.token_hex(32), "forgotten": []}

    @property
    def digest(self) -> str | None:
        """16 hexadecimal digits that change with every tombstone; None without any."""
        lines = sorted([line["kind"], line["hash"], line["at"]] for line in self.content["forgotten"])
        return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:16] if lines else None

    def until(self, kind: Kind, ids: Iterable[str]) -> dict[str, datetime | None]:
        """Return those of the ids that were forgotten, and until when they are left out; None for ever."""
        known = {line["hash"]: line["at"] for line in self.content["forgotten"] if line["kind"] == kind}
        found = {id_: known[digest] for id_ in ids if known and (digest := self._hash(kind, id_)) in known}
        return {id_: datetime.fromisoformat(at) if kind == "user" else None for id_, at in found.items()}

    def line(self, kind: Kind, id_: str) -> dict[str, Any] | None:
        """Return the line of an id, or None."""
        wanted = (kind, self._hash(kind, id_))
        return next((line for line in self.content["forgotten"] if (line["kind"], line["hash"]) == wanted), None)

    def put(self, kind: Kind, id_: str, at: datetime, done: bool) -> None:
        """Write the line of an id down, in place of an earlier one; ``done`` says that the lake is rid of it."""
        line = {"kind": kind, "hash": self._hash(kind, id_), "at": at.isoformat(timespec="seconds"), "done": done}
        others = [one for one in self.content["forgotten"] if (one["kind"], one["hash"]) != (kind, line["hash"])]
        self.content["forgotten"] = [*others, line]
        replace_json(self.path, self.content)

    def require_done(self) -> None:
        """Prove that nothing waits to be forgotten.

        Raises
        ------
        ContractError
            A forgetting was cut off.

        """
        if begun := [line["at"] for line in self.content["forgotten"] if not line["done"]]:
            raise ContractError(
                f"{self.path}: what was to be forgotten at {', '.join(begun)} may be in the lake still, for it was cut "
                "off; expected it to have ended. Give the same `nightcart forget` again, then run the night"
            )

    def _hash(self, kind: Kind, id_: str) -> str:
        return hashlib.blake2b(f"{kind} {id_}".encode(), key=bytes.fromhex(self.content["key"])).hexdigest()[:32]
