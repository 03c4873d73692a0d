"""What a measurement must know of its machine: what it is, who else is busy on it, and the memory a call takes."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tradeoff
from tradeoff.studies import digest

THREADS = 2
"""Every contender has so many threads, on so many cores."""
BUSY = 0.1
"""Cores that others may keep busy before a result is marked as taken under load."""
PACKAGES = (
    *("numpy", "scipy", "jax", "jaxlib", "diffrax", "optax", "equinox", "torch", "torchdiffeq", "transformers"),
    *(
        "moocore",
        "curvlinops-for-pytorch",
        "hessian-eigenthings",
        "matfree",
        "scikit-learn",
        "cvxpy",
        "clarabel",
        "mpmath",
    ),
)
"""Packages whose versions are recorded when they are there."""


def pin() -> dict[str, str]:
    """Keep this process and its children to `THREADS` cores; the environment in which children keep to as many threads.

    Returns:
        `os.environ` and the limits that thread pools read when they are loaded.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    # Threads that spin while they wait would be timed as work of the next contender.
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **dict.fromkeys(pools, str(THREADS))}


def environment() -> dict[str, Any]:
    """The machine, the versions and the sources that made a measurement."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": THREADS,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": found,
        "source": digest(*sorted(Path(tradeoff.__file__).parent.rglob("*.py"))),
        "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


class Others:
    """How many cores other processes kept busy while one was watching; None where the system does not say."""

    busy: float | None = None


@contextmanager
def watch_others() -> Iterator[Others]:
    """Measure what other processes take of the machine meanwhile."""
    others = Others()
    before, began = _busy_seconds(), time.perf_counter()
    try:
        yield others
    finally:
        after = _busy_seconds()
        if before is not None and after is not None:
            others.busy = max(0.0, (after - before) / (time.perf_counter() - began))


def peak_megabytes(run: Callable[[], Any]) -> tuple[Any, float | None]:
    """The result of a call, and how far the memory of the process rose above where it was; None where it cannot be read."""
    before = _reset_peak()
    result = run()
    return result, None if before is None else max(0.0, (_status("VmHWM") or before) - before) / 1024


def _busy_seconds() -> float | None:
    """Seconds of processor time taken by all but this process, since some moment."""
    path = Path("/proc/stat")
    if not path.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, path.read_text().split(maxsplit=9)[1:9])
    spent = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return spent - sum(os.times()[:4])


def _reset_peak() -> int | None:
    """Forget the peak of resident memory; what is resident now, in kilobytes, or None where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int | None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown"
