"""How contenders are measured: interleaved in one process, accuracy first, the best of up to three blocks.

A benchmark names its contenders, ours first, an error against an independent reference, the tolerance that a result must
meet before its time counts, and how many times faster than each peer ours must be.
"""

import gc
import importlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.machine import BUSY, environment, peak_megabytes, watch_others
from tradeoff._files import write_atomically

SCHEMA = "1"
"""Version of the result format."""
FORM = Path(__file__).parent / "result-schema.json"
"""What a result looks like, as JSON Schema."""
BLOCKS = 3
"""A bar is missed only when it is missed in every one of so many blocks."""
ENOUGH = 20.0
"""Seconds after which further blocks are only for the peers whose bar is still missed."""
SLOW = 4.0
"""Seconds of a first call that warms its contender up by itself."""


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Args:
        name: `tradeoff` for ours, else the peer's.
        run: does the work once and returns when it is done; the result is what `Benchmark.error` understands.
        repeats: timed runs in a block, where not those of the benchmark.
        error: its own error, for one that computes something else (a floor to compare with).
    """

    name: str
    run: Callable[[], Any]
    repeats: int | None = None
    error: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Benchmark:
    """One piece of work and what is asked of it.

    Args:
        name: as a file is named, `trust_region_path_d50`.
        title: one line.
        contenders: builds them when called, ours first; a peer that is not installed is left out (see `peer`).
        error: of a result, against an independent reference that is computed once.
        tolerance: a contender with a larger error scores nothing, ours included.
        bars: peer to how many times faster ours must be.
        repeats: timed runs of each contender in a block.
        most_megabytes: how far ours may raise the memory of the process, when that is asked.
    """

    name: str
    title: str
    contenders: Callable[[], Sequence[Contender]]
    error: Callable[[Any], float]
    tolerance: float
    bars: Mapping[str, float]
    repeats: int = 7
    most_megabytes: float | None = None


@dataclass
class Score:
    """What was measured of one contender; seconds, and megabytes above where the process stood."""

    name: str
    first_call: float = math.nan
    megabytes: float | None = None
    error: float = math.nan
    valid: bool = False
    blocks: list[float] = field(default_factory=list)
    failure: str | None = None

    @property
    def best(self) -> float:
        """The least time of any run."""
        return min(self.blocks, default=math.nan)


def peer(package: str) -> ModuleType | None:
    """The module of a peer, or None when it is not installed: then leave its contender out, and it is named as skipped."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            raise
        return None


def measure(benchmark: Benchmark, blocks: int = BLOCKS) -> dict[str, Any]:
    """Run a benchmark by the protocol.

    Two calls warm a contender up, or one that takes longer than `SLOW`: the first is reported apart, the last gives the memory
    and the result whose error is taken. Those that finish are timed in turn, round after round, without garbage collection
    in between. After `ENOUGH` seconds there are further blocks only of ours and of the peers whose bar is still missed.

    Args:
        benchmark: what to run.
        blocks: how many blocks of repeats, at most.

    Returns:
        The result as JSON values; see `comparisons` for the bars.

    Raises:
        ValueError: when there is no contender, or two have one name.
    """
    began = time.perf_counter()
    contenders = list(benchmark.contenders())
    names = [each.name for each in contenders]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"benchmark {benchmark.name} has contenders {names}; give at least one, each with its own name."
        )
    with watch_others() as others:
        scores = [_warm(each, benchmark) for each in contenders]
        running = [(each, score) for each, score in zip(contenders, scores, strict=True) if score.failure is None]
        for _ in range(blocks):
            _block(running, benchmark.repeats)
            if time.perf_counter() - began > ENOUGH:
                missed_by = {one["peer"] for one in comparisons(scores, benchmark) if one["met"] is False}
                if not missed_by:
                    break
                running = [(each, score) for each, score in running if score is scores[0] or score.name in missed_by]
    return {
        "schema": SCHEMA,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "tolerance": benchmark.tolerance,
        "most_megabytes": benchmark.most_megabytes,
        "contenders": [
            {k: _finite(v) for k, v in asdict(score).items()} | {"best": _finite(score.best)} for score in scores
        ],
        "comparisons": comparisons(scores, benchmark),
        "skipped": [name for name in benchmark.bars if name not in names],
        "others_busy": others.busy,
        "under_load": None if others.busy is None else others.busy > BUSY,
        "environment": environment(),
        "seconds": time.perf_counter() - began,
    }


def comparisons(scores: Sequence[Score], benchmark: Benchmark) -> list[dict[str, Any]]:
    """How many times faster than each peer ours is: by the least time of each, in every block, and whether the bar is met.

    Ours misses a bar when it misses the gates of accuracy or memory, or is not that much faster in any of the blocks: machines
    change their speed between them. The best block flatters, more so a contender with few repeats, so what is told first is
    the ratio of the least times. That the peer misses the gate excuses nothing, and is told.
    """
    ours, *peers = scores
    most = benchmark.most_megabytes
    passes = ours.valid and (most is None or (ours.megabytes is not None and ours.megabytes <= most))
    found = []
    for each in peers:
        ratios = [theirs / mine for theirs, mine in zip(each.blocks, ours.blocks, strict=False)]
        bar = benchmark.bars.get(each.name)
        met = None if bar is None else passes and max(ratios, default=math.nan) >= bar
        found.append(
            {
                "peer": each.name,
                "ratio": _finite(each.best / ours.best),
                "blocks": ratios,
                "bar": bar,
                "met": met,
                "peer_valid": each.valid,
            }
        )
    return found


def save(result: Mapping[str, Any], folder: Path) -> Path:
    """Write a result as JSON, whole or not at all, after the check that it is of the format, where `jsonschema` is installed."""
    if jsonschema := peer("jsonschema"):
        jsonschema.validate(result, json.loads(FORM.read_text(encoding="utf-8")))
    path = folder / f"{result['benchmark']}.json"
    text = json.dumps(result, indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    return path


def missed(result: Mapping[str, Any]) -> list[str]:
    """What a result falls short of, in words; nothing when it meets everything that was asked."""
    ours = result["contenders"][0]
    short = [] if ours["valid"] else [f"{ours['name']} {ours['failure'] or 'misses the accuracy gate'}"]
    most, took = result["most_megabytes"], ours["megabytes"]
    if most is not None and not (took is not None and took <= most):
        short.append(f"memory {'unknown' if took is None else f'{took:.0f} MB'}, at most {most:g} MB asked")
    bars = [one for one in result["comparisons"] if one["met"] is False and ours["valid"]]
    return short + [f"{one['peer']} {_times(max(one['blocks'], default=None))} of {one['bar']:.3g}x" for one in bars]


def table(result: Mapping[str, Any]) -> str:
    """A result in a few lines of text."""
    lines = [f"{result['benchmark']}: {result['title']} (gate {result['tolerance']:.1g})"]
    against = {one["peer"]: one for one in result["comparisons"]}
    for each in result["contenders"]:
        if each["failure"]:
            lines.append(f"  {each['name']:<28} {each['failure']}")
            continue
        took = "" if each["megabytes"] is None else f"{each['megabytes']:6.0f} MB"
        gate = "" if each["valid"] else "  misses the gate"
        error = "unknown" if each["error"] is None else f"{each['error']:.1e}"
        line = f"  {each['name']:<28} {1e3 * each['best']:10.3f} ms  error {error:>7}{gate}  "
        line += f"first call {each['first_call']:6.2f} s {took}"
        if one := against.get(each["name"]):
            best = _times(max(one["blocks"], default=None))
            bar = (
                ""
                if one["bar"] is None
                else f", best block {best} (bar {one['bar']:.3g}x: {'met' if one['met'] else 'MISSED'})"
            )
            line += f"  {_times(one['ratio'])}{bar}"
        lines.append(line)
    lines += [f"  {name:<28} skipped: not installed" for name in result["skipped"]]
    if result["under_load"]:
        lines.append(f"  UNDER LOAD: other processes kept {result['others_busy']:.1f} cores busy")
    return "\n".join(lines)


def _warm(contender: Contender, benchmark: Benchmark) -> Score:
    score = Score(contender.name)
    try:
        began = time.perf_counter()
        result, score.megabytes = peak_megabytes(contender.run)
        score.first_call = time.perf_counter() - began
        if score.first_call <= SLOW:
            result, score.megabytes = peak_megabytes(contender.run)
        score.error = float((contender.error or benchmark.error)(result))
    except Exception as error:  # whatever stops one contender is its result; the others run on
        score.failure = f"failed: {type(error).__name__}: {error}"
    score.valid = score.failure is None and score.error <= benchmark.tolerance
    return score


def _block(running: Sequence[tuple[Contender, Score]], repeats: int) -> None:
    least = [math.inf] * len(running)
    rounds = [each.repeats or repeats for each, _ in running]
    gc.collect()
    gc.disable()
    try:
        for turn in range(max(rounds, default=0)):
            for i, (each, _) in enumerate(running):
                if turn < rounds[i]:
                    began = time.perf_counter()
                    each.run()
                    least[i] = min(least[i], time.perf_counter() - began)
    finally:
        gc.enable()
    for (_, score), seconds in zip(running, least, strict=True):
        score.blocks.append(seconds)


def _finite(value: Any) -> Any:
    """JSON has no NaN: what was not measured is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _times(ratio: float | None) -> str:
    return "no ratio" if ratio is None else f"{ratio:.2f}x"
