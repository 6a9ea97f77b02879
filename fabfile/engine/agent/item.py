"""What all kinds share."""

from __future__ import annotations

from typing import Any

from .journal import Journal
from .wire import Have, Want

changed_ids: set[str] = set()  # resources that changed (or would change) in this run
observed: dict[str, Any] = {}  # what one look at dpkg or systemd said about all packages and units


def forget_observations() -> None:
    observed.clear()


class Item:
    """One resource: `wanted` and `observe` give dicts; where a key of `wanted` differs, `apply` is called."""

    def __init__(self, want: Want, journal: Journal) -> None:
        self.want, self.journal = want, journal

    def questions(self) -> list[tuple[str, ...]]:
        """Programs that `observe` will run, so that they can be started together."""
        return []

    def wanted(self) -> Have:
        raise NotImplementedError

    def observe(self) -> Have:
        raise NotImplementedError

    def prepare(self, have: Have) -> None:
        """What can fail while nothing is changed, and is then as if it had not been tried."""

    def apply(self, have: Have) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Write down what is left when it is as it shall be."""

    def resume(self) -> None:
        """It is as it shall be, by a run that was killed before it could say so."""
        self.finish()

    def keeps(self, before: Have, options: dict[str, Any]) -> str:
        """Why undo with these options leaves it as it is; an empty string if it does not."""
        return ""

    def restore(self, before: Have, options: dict[str, Any]) -> str:
        """Put back what was there before us. Returns why something was left, or an empty string."""
        raise NotImplementedError

    def unchanged_since(self, now: Have, after: Have) -> bool:
        return now == after

    def diff(self, have: Have) -> str:
        return ""
