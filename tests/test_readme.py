"""What README and the docs show is run: their Python blocks as they stand, and the numbers they quote."""

import re
from pathlib import Path

import jax
import pytest

from tradeoff import theorems

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_every_python_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    generated = ("theorems/",)  # `make docs` writes them
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert all((page.parent / link).exists() for link in links if not link.startswith(generated))


def test_the_worked_example_is_what_the_page_says(tmp_path):
    """The false conjecture of the docs: how often random instances break it, and that it is written with `@to.theorem`."""
    page = ROOT / "docs" / "bring-your-own-theorem.md"
    (source,) = blocks(page, "python")
    path = tmp_path / "my_bounds.py"
    path.write_text(source)
    (claim,) = theorems.load(path)
    verdict = theorems.verify(claim, jax.random.key(0))
    assert f"{verdict.violations:,} violations in {verdict.instances:,}" in " ".join(page.read_text().split())
