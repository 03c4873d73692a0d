"""Pages of theorems, written from the objects: what each says, what it needs, how tight it is, and where it comes from."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from latex2mathml.converter import convert
from matplotlib.figure import Figure

from tradeoff import plotting
from tradeoff._compiling import understood
from tradeoff._files import write_atomically
from tradeoff.citations import cite
from tradeoff.theorems import Theorem, slacks, verify
from tradeoff.theorems.falsification import describe
from tradeoff.theorems.verification import UNOPTIMISED

INSTANCES = 2_000
"""Random instances behind every page: enough to draw a distribution, and quick."""

SIGNS = {"<=": "≤", ">=": "≥", "==": "="}


def write_pages(
    claims: Sequence[Theorem], folder: Path, key: Array, progress: Callable[[Theorem], object] | None = None
) -> Path:
    """Write a Markdown page with a drawing for each theorem, and an index that maps claims of the literature to theorems.

    Args:
        claims: the theorems.
        folder: where `index.md`, `T4a.md`, `T4a.svg` and so on go.
        key: a JAX random key for the instances that the drawings show.
        progress: called with each theorem when its page is written.

    Returns:
        The path of the index.

    Raises:
        ValueError: as `verify`.
    """
    for claim in claims:
        with plotting.style():
            plotting.save(_drawing(claim, key), folder / claim.name)
        (folder / claim.name).with_suffix(".png").unlink()
        _write(folder / f"{claim.name}.md", page(claim, key))
        if progress is not None:
            progress(claim)
    _write(folder / "index.md", index(claims))
    return folder / "index.md"


def page(claim: Theorem, key: Array) -> str:
    """One theorem as Markdown, with its statement in MathML.

    Args:
        claim: the theorem.
        key: a JAX random key for the instances on which it is checked.
    """
    verdict = verify(claim, key, INSTANCES)
    status = "" if claim.proved else "\n!!! note\n    A conjecture: it is not proved.\n"
    lines = [
        f"# {claim.name}: {claim.title}\n{status}\n{claim.meaning}\n",
        f'<div class="statement">{convert(claim.statement, display="block")}</div>\n',
        *(["## What it compares\n", *_parts(claim), ""] if claim.parts else []),
        "## What it assumes\n",
        *(_assumption(claim, one.name, one.words) for one in claim.assumptions),
        *([] if claim.assumptions else ["Nothing beyond the setting.\n"]),
        "## How tight it is\n",
        f"{verdict}.".replace(f" [{verdict.seconds:.2f} s]", "") + "\n",
        f"![Distribution of the ratio of the two sides]({claim.name}.svg)\n",
        *_tight(claim),
        "## Where it comes from\n",
        *([f"It makes precise: *{claim.makes_precise}*.\n"] if claim.makes_precise else []),
        f"```bibtex\n{cite(claim)}\n```\n",
        "## Check it\n",
        f"```\ntradeoff verify {claim.name} --instances 1000000 --falsify\n```\n",
    ]
    return "\n".join(lines)


def index(claims: Sequence[Theorem]) -> str:
    """All theorems by the claim of the literature that they make precise, as Markdown."""
    groups: dict[str, list[Theorem]] = {}
    for claim in claims:
        groups.setdefault(claim.makes_precise or "the framework itself", []).append(claim)
    lines = ["# Theorems\n", "Each claim of the literature, and the theorems that make it precise.\n"]
    for precise, members in groups.items():
        lines += [f"## {precise[:1].upper()}{precise[1:]}\n", "| theorem | in short |", "|---|---|"]
        lines += [f"| [{claim.name}]({claim.name}.md) | {claim.title} |" for claim in members]
        lines.append("")
    return "\n".join(lines)


def _parts(claim: Theorem) -> list[str]:
    return [
        f"* {part}: left {SIGNS[relation]} right" for part, relation in zip(claim.parts, claim.relations, strict=True)
    ]


def _assumption(claim: Theorem, name: str, words: str) -> str:
    lost = claim.without.get(name)
    if lost is None or isinstance(lost, str):
        return f"* **{name}**: {words}. Without it: {lost or 'not explored'}.\n"
    instance = lost()
    left, right = jax.jit(claim.at, compiler_options=understood(UNOPTIMISED))(instance)
    part = int(np.argmax(np.asarray(claim.violations((left, right)))))
    where = f" ({claim.parts[part]})" if claim.parts else ""
    return (
        f"* **{name}**: {words}. Without it the claim can fail{where}: left {float(left[part]):.6g}, "
        f"right {float(right[part]):.6g} at\n\n{textwrap.indent(_block(instance), '    ')}\n"
    )


def _tight(claim: Theorem) -> list[str]:
    if claim.tight is None:
        return []
    return [f"It reaches the ratio {claim.tight.ratio:g} at\n", _block(claim.tight.instance()), ""]


def _block(instance: Any) -> str:
    return f"```\n{textwrap.dedent(describe(instance))}\n```"


def _drawing(claim: Theorem, key: Array) -> Figure:
    """The distribution of ratios of inequalities, or of relative errors of equalities."""
    found = np.asarray(slacks(claim, key, INSTANCES))
    names = claim.parts or (claim.title,)
    unequal = [relation != "==" for relation in claim.relations]
    figure = Figure(figsize=(6.0, 0.9 + 0.16 * max(len(names), 10)))
    ax = figure.subplots()
    if any(unequal):
        shown = [(name, 1 - found[:, i]) for i, name in enumerate(names) if unequal[i]]
        plotting.ratios(ax, shown)
    else:
        plotting.errors(ax, [(name, -found[:, i]) for i, name in enumerate(names)])
    return figure


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda beside: beside.write_text(text.rstrip() + "\n"))
