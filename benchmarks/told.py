"""What the results of the benchmarks say, in words and rows."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.protocol import missed

Result = Mapping[str, Any]
"""A result as JSON values, of `benchmarks/result-schema.json`."""

FLOORS = (
    *("bare forward", "layers without the head", "gradient", "its gradients alone", "its products alone"),
    *("its logarithms alone", "a tenth of the times"),
)
"""Parts of our own work, or less of it, timed for comparison: nobody can use them in its place."""
NOTICEABLE = 0.95
"""Of our time: a peer that takes less is faster."""
DAY = 86_400.0
SCALING = "scaling.json"
"""The file of benchmarks/scaling.py, which is of another form."""
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A title, the heads of the columns and the rows."""


def load(folder: Path) -> list[Result]:
    """The results in a folder, by name.

    Raises:
        FileNotFoundError: when there is none.
    """
    paths = sorted(path for path in folder.glob("*.json") if path.name != SCALING)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no result; run `python -m benchmarks --out {folder}` first.")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def load_scaling(folder: Path) -> Result | None:
    """How cost grows, if that was measured."""
    path = folder / SCALING
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def shortfalls(results: Iterable[Result]) -> list[str]:
    """Every bar and gate that is missed, in words."""
    return [f"{one['benchmark']}: {what}" for one in results for what in missed(one)]


def peers_to_prefer(results: Iterable[Result]) -> list[str]:
    """The peers that are accurate enough and faster, in words."""
    return [
        f"{one['benchmark']}: {each['peer']} takes {each['ratio']:.2f} of our time"
        for one in results
        for each in one["comparisons"]
        if each["peer_valid"]
        and each["peer"] not in FLOORS
        and each["ratio"] is not None
        and each["ratio"] < NOTICEABLE
    ]


def summary(results: Sequence[Result]) -> str:
    """How many bars are met, where and when."""
    asked = [each for one in results for each in one["comparisons"] if each["bar"] is not None]
    met = sum(bool(each["met"]) for each in asked)
    first, last = (pick(one["environment"]["taken"][:10] for one in results) for pick in (min, max))
    when = first if first == last else f"{first} to {last}"
    processors = sorted({f"{e['processor']}, {e['threads']} threads" for e in (one["environment"] for one in results)})
    return f"{len(results)} benchmarks, {met} of {len(asked)} bars met; {'; '.join(processors)}; {when}."


def notes(results: Sequence[Result]) -> list[tuple[str, list[str]]]:
    """What a reader must know before believing a ratio, each with a title."""
    loaded = [
        f"{one['benchmark']}: others kept {one['others_busy']:.1f} cores busy" for one in results if one["under_load"]
    ]
    skipped = [f"{one['benchmark']}: {', '.join(one['skipped'])}" for one in results if one["skipped"]]
    failed = [
        f"{one['benchmark']}: {each['name']} {each['failure']}"
        for one in results
        for each in one["contenders"][1:]
        if each["failure"]
    ]
    return [
        ("Missed", shortfalls(results)),
        ("Use the peer instead, which is as accurate and faster", peers_to_prefer(results)),
        ("Peers that did not finish", failed),
        ("Taken under load", loaded),
        ("Skipped, not installed", skipped),
    ]


def seconds(value: float | None) -> str:
    """A time.

    Example:
        >>> seconds(0.0123), seconds(1234.0), seconds(864_000.0), seconds(None)
        ('12.3 ms', '1,234 s', '10 days', 'unknown')
    """
    if value is None:
        return "unknown"
    if value >= DAY:
        return f"{value / DAY:,.0f} days"
    if value >= 1000:
        return f"{value:,.0f} s"
    unit, scale = ("s", 1) if value >= 1 else ("ms", 1e3) if value >= 1e-3 else ("µs", 1e6)
    return f"{value * scale:.3g} {unit}"


def times(value: float | None) -> str:
    """A ratio."""
    return "no ratio" if value is None else f"{value:.3g}x" if value < 1000 else f"{value:,.0f}x"


def error(each: Mapping[str, Any]) -> str:
    """Of a contender."""
    return "unknown" if each["error"] is None else f"{each['error']:.1e}"


def tables(scaling: Result) -> list[Table]:
    """What was measured of how cost grows."""
    load = " (under load)" if scaling["under_load"] else ""
    laws = [
        [
            f"{one['kernel']}; {one['fixed']}",
            f"{one['against']}, {one['sizes'][0]:,} to {one['sizes'][-1]:,}",
            _exponent(one["time"]),
            seconds(one["seconds"][-1]),
            "too little to fit" if one["memory"] is None else _exponent(one["memory"]),
            "unknown" if None in one["megabytes"] else f"{max(one['megabytes']):.0f} MB",
        ]
        for one in scaling["laws"]
    ]
    roofs = [
        [f"{one['kernel']}, {one['at']}", seconds(one["seconds"]), one["bound"], f"{100 * one['fraction']:.0f} %"]
        for one in scaling["rooflines"]
    ]
    ahead = [
        [
            one["what"],
            seconds(one["seconds"]),
            "" if one["lower"] is None else f"{seconds(one['lower'])} to {seconds(one['upper'])}",
            f"{one['bytes'] / 1e9:.3g} GB",
            one["breaks"],
        ]
        for one in scaling["projections"]
    ]
    rates = [[name, f"{rate / 1e9:.3g}"] for name, rate in scaling["limits"].items()]
    return [
        (
            f"How cost grows{load}",
            ("kernel", "against", "exponent of time", "the largest", "exponent of memory", "most"),
            laws,
        ),
        ("What is reached of the machine", ("kernel", "time", "bound by", "reached"), roofs),
        ("What the machine does in a second", ("of", "10⁹"), rates),
        ("Projected by these laws", ("what", "time", "interval", "memory", "what breaks first"), ahead),
    ]


def _exponent(law: Mapping[str, float]) -> str:
    return f"{law['exponent']:.2f} ({law['lower']:.2f} to {law['upper']:.2f})"
