"""One page that shows every figure with what it says and what made it; it works offline, in light and in dark."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from experiments.catalogue import Entry
from tradeoff import studies, theorems

STYLE = """:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fbfbfa; --soft: #5b636c; --line: #d8dce0; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --paper: #15181c; --soft: #9aa4ad; --line: #343a41; --card: #1a1a1a; }
  /* White becomes the card, black becomes ink, and hues stay what the legend calls them. */
  .card svg { filter: invert(.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 52rem; padding: 2rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 3rem 0 .7rem; }
nav ol { padding-left: 1.6rem; }
nav li { margin: .25rem 0; }
figure { margin: 0; }
.card { display: block; background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem; }
.card svg { display: block; max-width: 100%; height: auto; margin: auto; }
figcaption { margin: .7rem 0 .4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .8rem; margin: .6rem 0; font-size: .85rem; }
dt, details, .soft { color: var(--soft); }
dd { margin: 0; min-width: 0; }
details, .soft { font-size: .85rem; }
summary { cursor: pointer; padding: .2rem 0; }
code, pre { font-size: .95em; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; }
table { border-collapse: collapse; width: 100%; }
td, th { border-bottom: 1px solid var(--line); padding: .25rem .5rem; text-align: left; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
a { color: inherit; }"""
"""The look of a page: light or dark as the reader has it, and readable on a phone."""

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tradeoff: what safety fine-tuning must cost</title>
<style>
{style}
</style>
<h1>How much safety must fine-tuning cost?</h1>
<p>When an aligned language model is fine-tuned for a capability, some safety may have to go: how much is a closed form in a
world of contexts and responses, and a real checkpoint lives in the same world. Gaps are excess losses in nats; 0 is the best
that any policy can do.</p>
<nav aria-label="figures"><ol>
{index}
</ol></nav>
{sections}
<p class="soft">Made by {package}. <code>data/</code> and <code>figures/</code> lie beside this page; a figure that is tapped opens
alone, to be enlarged. <code>tradeoff verify T4a</code> checks a theorem on random instances.</p>
</html>
"""


def write_report(entries: Sequence[Entry], out: Path) -> Path:
    """Write `report.html` from the figures and data in `out`.

    Args:
        entries: the experiments to show, in order.
        out: the folder that holds `data/` and `figures/`.

    Returns:
        The page's path.
    """
    sections, package = [], ""
    for one in entries:
        data = studies.load(out / "data" / f"{one.name}.nc")
        if data is None:
            raise FileNotFoundError(
                f"{out / 'data' / one.name}.nc is missing; run `python -m experiments {one.name}` first."
            )
        package = data.attrs["package"]
        sections.append(_section(one, data, (out / "figures" / f"{one.name}.svg").read_text()))
    path = out / "report.html"
    index = "\n".join(f'<li><a href="#{one.name}">{html.escape(one.figure.TITLE)}</a></li>' for one in entries)
    page = _PAGE.format(style=STYLE, index=index, sections="\n".join(sections), package=html.escape(package))
    studies.write_atomically(path, lambda beside: beside.write_text(page))
    return path


def _section(one: Entry, data: xr.Dataset, svg: str) -> str:
    title, caption = html.escape(one.figure.TITLE), html.escape(one.figure.CAPTION)
    made_by = {name: data.attrs[name] for name in sorted(data.attrs)}
    details = html.escape(json.dumps(made_by, indent=1, default=str, ensure_ascii=False))
    return (
        f'<section id="{one.name}">\n<h2>{title}</h2>\n<figure>\n'
        f'<a class="card" href="figures/{one.name}.svg" role="img" aria-label="{title}">{inline(svg, one.name)}</a>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>\n"
        f"<dl>{_theorems(one, data)}\n"
        f'<dt>data</dt><dd><a href="data/{one.name}.nc">{one.name}.nc</a></dd>\n'
        f'<dt>figure</dt><dd><a href="figures/{one.name}.svg">SVG</a>, <a href="figures/{one.name}.png">PNG</a></dd>\n'
        f"<dt>made by</dt><dd><code>experiments/{one.name}.py</code>, drawn by <code>figures/{one.name}.py</code>; again: "
        f"<code>python -m experiments {one.name}</code></dd></dl>\n"
        f"{_verdicts(data)}<details><summary>settings, versions, seeds</summary><pre>{details}</pre></details>\n</section>"
    )


def _theorems(one: Entry, data: xr.Dataset) -> str:
    """What the figure shows, by name and title; a figure of verdicts has a table of them."""
    if "theorem" in data.dims:
        return ""
    shown = "; ".join(f"<b>{name}</b> {html.escape(theorems.get(name).title)}" for name in one.figure.THEOREMS)
    return f"<dt>{'theorems' if len(one.figure.THEOREMS) > 1 else 'theorem'}</dt><dd>{shown}</dd>"


def inline(svg: str, name: str) -> str:
    """The drawing without its XML header; its ids get a prefix, because two drawings on one page may share them."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    for pattern in (r'(\bid=")', r'(xlink:href="#)', r"(url\(#)"):
        body = re.sub(pattern, rf"\1{name}-", body)
    return body


def _verdicts(data: xr.Dataset) -> str:
    if "theorem" not in data.dims:
        return ""
    rows = []
    for claim in data.theorem.values:
        one = data.sel(theorem=claim)
        kind = "" if bool(one.proved) else " (conjecture)"
        ratio = f"{float(one.tightest):.4f}" if bool(one.inequality) else "equal"
        verdict = "holds" if bool(one.holds) else "violated"
        rows.append(
            f"<tr><td>{html.escape(str(claim))}</td><td>{html.escape(str(one.title.values))}{kind}</td>"
            f'<td>{verdict}</td><td class="number">{ratio}</td></tr>'
        )
    instances = json.loads(data.attrs["settings"])["instances"]
    head = f'<tr><th>claim</th><th>title</th><th>on {instances:,} instances</th><th class="number">tightest ratio</th></tr>'
    return f"<details><summary>{len(rows)} verdicts</summary><table>{head}{''.join(rows)}</table></details>\n"
