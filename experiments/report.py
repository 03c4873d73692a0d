"""One page that shows every figure with what it says and what made it; it works offline, in light and in dark."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from experiments.catalogue import Entry
from tradeoff import studies

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tradeoff: what safety fine-tuning must cost</title>
<style>
:root {{ color-scheme: light dark; --ink: #1b1f24; --paper: #fbfbfa; --soft: #656d76; --line: #d8dce0; --card: #fff; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e8ea; --paper: #15181c; --soft: #9aa4ad; --line: #343a41; --card: #fff; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 52rem; padding: 2rem 1rem 4rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, sans-serif; }}
h1 {{ font-size: 1.7rem; line-height: 1.2; }}
h2 {{ font-size: 1.2rem; margin: 3rem 0 .7rem; }}
.card {{ background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem; }}
.card svg {{ display: block; width: 100%; height: auto; }}
p.caption {{ margin: .7rem 0 .2rem; }}
details, .soft {{ color: var(--soft); font-size: .85rem; }}
details pre {{ overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; width: 100%; font-size: .85rem; }}
td, th {{ border-bottom: 1px solid var(--line); padding: .25rem .5rem; text-align: left; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
a {{ color: inherit; }}
</style>
<h1>How much safety must fine-tuning cost?</h1>
<p>When an aligned language model is fine-tuned for a capability, some safety may have to go: how much is a closed form in a
world of contexts and responses, and a real checkpoint lives in the same world. Gaps are excess losses in nats; 0 is the best
that any policy can do.</p>
{sections}
<p class="soft">Made by {package}. The data behind every figure lie beside this page in <code>data/</code>.</p>
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
    page = _PAGE.format(sections="\n".join(sections), package=html.escape(package))
    studies.write_atomically(path, lambda beside: beside.write_text(page))
    return path


def _section(one: Entry, data: xr.Dataset, svg: str) -> str:
    title, caption = html.escape(one.figure.TITLE), html.escape(one.figure.CAPTION)
    made_by = {name: data.attrs[name] for name in sorted(data.attrs)}
    details = html.escape(json.dumps(made_by, indent=1, default=str, ensure_ascii=False))
    table = _verdicts(data) if "theorem" in data.dims else ""
    return (
        f'<h2 id="{one.name}">{title}</h2>\n<div class="card" role="img" aria-label="{title}">{_inline(svg, one.name)}</div>\n'
        f'<p class="caption">{caption}</p>\n{table}'
        f"<details><summary>what made it</summary><pre>{details}</pre></details>"
    )


def _inline(svg: str, name: str) -> str:
    """The drawing without its XML header; its ids get a prefix, because two drawings on one page may share them."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    for pattern in (r'(\bid=")', r'(xlink:href="#)', r"(url\(#)"):
        body = re.sub(pattern, rf"\1{name}-", body)
    return body


def _verdicts(data: xr.Dataset) -> str:
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
    return f'<details><summary>every verdict</summary><div class="wide"><table>{head}{"".join(rows)}</table></div></details>\n'
