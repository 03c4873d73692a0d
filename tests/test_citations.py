"""BibTeX of exactly what was used."""

import pytest

import tradeoff as to


def test_a_theorem_of_the_framework_brings_the_paper_whose_claim_it_makes_precise():
    text = to.cite("T5b")
    assert text.count("@misc{") == 2
    assert "2503.20807" in text


def test_a_law_of_a_published_method_brings_its_own_paper_only():
    text = to.cite("lisa")
    assert text.count("@misc{") == 1
    assert "2405.18641" in text


def test_every_source_has_an_entry_and_each_is_given_once():
    claims = to.theorems.all()
    text = to.cite(*claims, *claims)
    assert all(text.count(f"@misc{{{source},") == 1 for source in {claim.source for claim in claims})


def test_what_is_neither_theorem_nor_key_is_refused():
    with pytest.raises(KeyError, match="Citation keys are framework"):
        to.cite("nonsense")
