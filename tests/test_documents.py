"""Pages of theorems: written from the objects, complete, and well formed."""

import re
from xml.etree import ElementTree

import jax
import pytest
from latex2mathml.converter import convert

from tradeoff import documents, theorems

KEY = jax.random.key(0)
CLAIMS = {claim.name: claim for claim in theorems.all()}


@pytest.mark.parametrize("name", CLAIMS)
def test_every_statement_can_be_set(name):
    mathml = convert(CLAIMS[name].statement)
    ElementTree.fromstring(mathml)
    assert "\\" not in mathml  # a command that the converter does not know is left as it stands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("pages")
    documents.write_pages([CLAIMS["T8d"], CLAIMS["T2b"]], made, KEY)
    return made


def test_a_page_says_what_the_object_says(folder):
    claim, text = CLAIMS["T8d"], (folder / "T8d.md").read_text()
    for said in (claim.title, claim.meaning, claim.makes_precise, *claim.parts, "@misc{chen2025tradeoffs"):
        assert said in text
    for assumption in claim.assumptions:
        assert f"**{assumption.name}**: {assumption.words}" in text
    assert "holds on 2,000 instances" in text
    assert "Without it the claim can fail (any policy): left 0.9, right 0.1" in text
    assert "world.safety.P = [[1., 0.]]" in text  # where it is tight


def test_every_link_leads_somewhere(folder):
    for page in folder.glob("*.md"):
        links = re.findall(r"\]\(([^)]+)\)", page.read_text())
        assert links
        assert all((folder / link).is_file() for link in links)


def test_nothing_else_is_left_behind(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["T2b.md", "T2b.svg", "T8d.md", "T8d.svg", "index.md"]


def test_a_conjecture_is_marked_as_one():
    guess = theorems.theorem(
        "guess", title="a guess", statement=r"\lambda\ge0", family=CLAIMS["T4a"].family, proved=False
    )(_positive)
    assert "A conjecture: it is not proved." in documents.page(guess, KEY)


def _positive(instance):
    """Penalties are positive."""
    return 0.0, instance.lam
