"""How fast, how large, how small: the collector on generated lines, as one process on one core."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.bench import log

PROGRAM = Path(__file__).parents[2] / "files" / "collector" / "collector.py"


def measure(folder: Path, geo: Path, count: int = 1_000_000) -> dict[str, float]:
    """{lines, lines_per_second, lines_per_cpu_second, peak_rss_mb, bytes_per_line, log_bytes_per_line} of one run to the end of a log."""
    path = folder / "iptables.log"
    with path.open("wb") as file:
        file.writelines(log.lines(count))
    db = folder / "knockmap.db"
    argv = [sys.executable, str(PROGRAM), "--once", "--log", str(path), "--db", str(db), "--geo", str(geo)]
    started = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise SystemExit(f"the collector ended with status {status}")
    size = sum(item.stat().st_size for item in folder.glob("knockmap.db*"))
    return {
        "lines": count,
        "lines_per_second": round(count / seconds),
        "lines_per_cpu_second": round(count / (usage.ru_utime + usage.ru_stime)),
        "peak_rss_mb": round(usage.ru_maxrss / 1024, 1),
        "bytes_per_line": round(size / count, 1),
        "log_bytes_per_line": round(path.stat().st_size / count, 1),
    }
