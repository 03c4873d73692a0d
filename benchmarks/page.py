"""Results of the benchmarks for readers: one page that stands alone, and the table of docs/performance.md.

`python -m benchmarks.page FOLDER` writes index.html from the results in a folder, beside them; given a document such as
docs/performance.md, it writes what benchmarks/results says between the two marks of it.
"""

import html
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.told import Result, Table, error, load, load_scaling, notes, seconds, summary, tables, times
from experiments.report import STYLE, inline
from tradeoff._files import write_atomically
from tradeoff.plotting import COLOURS, style

COMMITTED = Path(__file__).parent / "results"
"""The results that the documents quote."""
MARKS = ("<!-- made by benchmarks/page.py: begin -->", "<!-- made by benchmarks/page.py: end -->")
WIDTH, LINE = 4.8, 0.19
"""Inches of the chart and of each of its lines: on a phone it is shown in its own size."""
MET, MISSED, UNASKED = COLOURS[0], COLOURS[1], "#777777"

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tradeoff: benchmarks</title>
<style>
{style}
.wide {{ overflow-x: auto; }}
.wide table {{ font-size: .85rem; }}
.wide td, .wide th {{ overflow-wrap: normal; }}
.wide td:not(.number) {{ min-width: 6.5rem; }}
.wide .number {{ white-space: nowrap; }}
</style>
<h1>Against the peers</h1>
<p>{summary}</p>
<figure><div class="card">{chart}</div>
<figcaption>How many times faster <code>tradeoff</code> is, on a logarithmic scale: the least times of up to three blocks, and thinly the
range of the blocks. A tick is the bar that was set beforehand; a hollow circle is a peer that misses the accuracy asked; a
cross is ours missing it.</figcaption></figure>
{notes}
{sections}
{scaling}
<h2>Made by</h2>
{environments}
</html>
"""


def write_page(folder: Path) -> Path:
    """Write `index.html` from the results in a folder, beside them.

    Returns:
        The page's path.
    """
    results, scaling = load(folder), load_scaling(folder)
    page = _PAGE.format(
        style=STYLE,
        summary=html.escape(summary(results)),
        chart=inline(_chart(results), "ratios"),
        notes="\n".join(_note(title, lines) for title, lines in notes(results)),
        sections="\n".join(map(_section, results)),
        scaling="\n".join(map(_html_table, tables(scaling))) if scaling else "",
        environments="\n".join(map(_environment, [*results, *([scaling] if scaling else [])])),
    )
    path = folder / "index.html"
    write_atomically(path, lambda beside: beside.write_text(page, encoding="utf-8"))
    return path


def document(text: str, results: Sequence[Result], scaling: Result | None) -> str:
    """A document with what the results say between its two marks.

    Raises:
        ValueError: when it does not have each mark once, in order.
    """
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end or any(mark in before + after for mark in MARKS):
        raise ValueError(f"the document needs {MARKS[0]!r} once and, after it, {MARKS[1]!r} once.")
    told = "\n".join([_markdown(results), *(map(_markdown_table, tables(scaling)) if scaling else ())])
    return f"{before}{begin}\n\n{told}\n\n{end}{after}"


# --- the document -------------------------------------------------------------------------------------------------


def _markdown(results: Sequence[Result]) -> str:
    lines = [summary(results), ""]
    for title, told in notes(results):
        lines += [f"**{title}**: {'; '.join(told) if told else 'none'}.", ""]
    lines += ["| work | ours | error | how many times faster than | first call |", "|---|---|---|---|---|"]
    return "\n".join(lines + [_line(one) for one in results])


def _markdown_table(table: Table) -> str:
    title, head, rows = table
    lines = [" | ".join(("", *row, "")).strip() for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(["", f"### {title}", "", *lines])


def _line(result: Result) -> str:
    ours = result["contenders"][0]
    load = ", **under load**" if result["under_load"] else ""
    against = "<br>".join(map(_against, result["comparisons"]))
    cells = [f"{result['title']} (`{result['benchmark']}`{load})", seconds(ours["best"]), error(ours), against]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, seconds(ours["first_call"])]) + " |"


def _against(each: Mapping[str, Any]) -> str:
    bar = "" if each["bar"] is None else f", asked {times(each['bar'])}" + ("" if each["met"] else ": **missed**")
    return f"{times(each['ratio'])} {each['peer']}{'' if each['peer_valid'] else ' †'}{bar}"


# --- the page -----------------------------------------------------------------------------------------------------


def _note(title: str, told: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in told)
    return f"<h2>{title}</h2>\n<ul>{items}</ul>" if told else f'<p class="soft">{title}: none.</p>'


def _section(result: Result) -> str:
    against = {each["peer"]: each for each in result["comparisons"]}
    head = "<tr><th>contender</th>" + "".join(
        f'<th class="number">{name}</th>'
        for name in ("time", "ours is faster", "asked", "error", "first call", "memory, MB")
    )
    rows = "\n".join(_row(each, against.get(each["name"])) for each in result["contenders"])
    load = f" Under load: others kept {result['others_busy']:.1f} cores busy." if result["under_load"] else ""
    return (
        f'<section id="{result["benchmark"]}">\n<h2>{html.escape(result["title"])}</h2>\n'
        f'<p class="soft"><code>{result["benchmark"]}</code>; errors of at most {result["tolerance"]:.1g} score.{load}</p>\n'
        f'<div class="wide"><table>{head}</tr>\n{rows}</table></div>\n</section>'
    )


def _row(each: Mapping[str, Any], against: Mapping[str, Any] | None) -> str:
    name = html.escape(each["name"])
    if each["failure"]:
        return f'<tr><td>{name}</td><td colspan="6">{html.escape(each["failure"])}</td></tr>'
    bar = "" if against is None or against["bar"] is None else times(against["bar"])
    if bar:
        bar += ", met" if against and against["met"] else ", <b>missed</b>"
    memory = "unknown" if each["megabytes"] is None else f"{each['megabytes']:.0f}"
    cells = [
        seconds(each["best"]),
        "" if against is None else times(against["ratio"]),
        bar,
        error(each) + ("" if each["valid"] else " (misses)"),
        seconds(each["first_call"]),
        memory,
    ]
    return f"<tr><td>{name}</td>" + "".join(f'<td class="number">{cell}</td>' for cell in cells) + "</tr>"


def _html_table(table: Table) -> str:
    title, head, rows = table
    lines = ["".join(f"<th>{name}</th>" for name in head)]
    lines += ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<h2>{title}</h2>\n<div class="wide"><table>{body}</table></div>'


def _environment(result: Result) -> str:
    told = html.escape(json.dumps(result["environment"], indent=1, sort_keys=True))
    return f"<details><summary>{result['benchmark']}</summary><pre>{told}</pre></details>"


def _chart(results: Sequence[Result]) -> str:
    """An SVG with a line for each peer, under a line for each benchmark."""
    compared = [one for one in results if any(each["ratio"] for each in one["comparisons"])]
    lines = sum(1.5 + len(one["comparisons"]) for one in compared)
    with style():
        figure = Figure(figsize=(WIDTH, LINE * (lines + 4)))
        axes = figure.subplots()
        axes.axvline(1, color="black", linewidth=0.8)
        y, ticks = 0.0, []
        for one in compared:
            label = one["benchmark"] + (" (under load)" if one["under_load"] else "")
            written = axes.annotate(label, (0, y), xycoords=("axes fraction", "data"), va="center", fontsize=7.5)
            written.set(weight="bold", backgroundcolor="white")
            for each in one["comparisons"]:
                y += 1
                ticks.append((y, each["peer"]))
                _point(axes, y, each, one["contenders"][0]["valid"])
            y += 1.5
        axes.set(xscale="log", xlabel="times faster than", ylim=(y, -1))
        axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks], fontsize=7)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn.getvalue()


def _point(axes: Axes, y: float, each: Mapping[str, Any], ours_valid: bool) -> None:
    if not each["ratio"]:
        return
    colour = UNASKED if each["met"] is None else MET if each["met"] else MISSED
    if each["blocks"]:
        axes.plot([np.min(each["blocks"]), np.max(each["blocks"])], [y, y], color=colour, linewidth=0.8)
    face = colour if each["peer_valid"] else "white"
    axes.plot(each["ratio"], y, "o" if ours_valid else "x", color=colour, markerfacecolor=face)
    if each["bar"] is not None:
        axes.plot(each["bar"], y, "|", color="black", markersize=9)


def main(arguments: Sequence[str]) -> None:
    """Write the page of a folder, or bring a document up to date with the committed results."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m benchmarks.page FOLDER | DOCUMENT.md")
    path = Path(arguments[0])
    if path.is_dir():
        print(write_page(path))
        return
    text = document(path.read_text(encoding="utf-8"), load(COMMITTED), load_scaling(COMMITTED))
    write_atomically(path, lambda beside: beside.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
