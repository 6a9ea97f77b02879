"""The options for the Java machine, of jvm.options and LS_JAVA_OPTS: there is none here, but a wrong one is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

from . import ConfigurationError

HEAP = re.compile(r"-(Xms|Xmx)(\d+)([kmgKMG]?)")
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def check(folder: Path) -> None:
    """Raises ConfigurationError with Java's words. What comes later counts, and LS_JAVA_OPTS comes last."""
    file = folder / "jvm.options"
    lines = file.read_text().splitlines() if file.exists() else []
    words = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    words += os.environ.get("LS_JAVA_OPTS", "").split()
    heap: dict[str, int] = {}
    for word in words:
        if not word.startswith("-"):
            raise refused(f"Could not find or load main class {word}")
        if word.startswith(("-Xms", "-Xmx")):
            found = HEAP.fullmatch(word)
            if not found:
                raise refused(f"Invalid initial heap size: {word}")
            heap[found[1]] = int(found[2]) * UNITS[found[3].lower()]
    if heap.get("Xms", 0) > heap.get("Xmx", 1 << 62):
        raise refused("Initial heap size set to a larger value than the maximum heap size")


def refused(why: str) -> ConfigurationError:
    return ConfigurationError(f"Error: Could not create the Java Virtual Machine. {why}")
