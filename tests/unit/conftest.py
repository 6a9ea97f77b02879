"""Units know nothing of the settings that their caller has in the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_settings_of_the_caller() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("KNOCKMAP_")]:
            patch.delenv(name)
        yield
