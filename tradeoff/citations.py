"""BibTeX of exactly what was used."""

import re
from importlib import resources

from tradeoff.theorems import Theorem, get

FRAMEWORK = "framework"
"""The citation key of this project's own theorems."""
PAPER = "chen2025tradeoffs"
"""The citation key of the paper whose claims they make precise."""


def cite(*used: Theorem | str) -> str:
    """The BibTeX of theorems and citation keys, each entry once, in the order of first use.

    A theorem brings its own source; one of the framework that makes a claim of the literature precise brings the paper that
    made the claim too.

    Args:
        *used: theorems, names of registered theorems, or citation keys.

    Returns:
        BibTeX entries, a blank line between two.

    Raises:
        KeyError: when a string is neither a theorem nor a citation key; the keys are listed.

    Example:
        >>> print(cite("T5b"))  # doctest: +ELLIPSIS
        @misc{framework,
        ...
        @misc{chen2025tradeoffs,
        ...
    """
    entries = references()
    keys: list[str] = []
    for one in used:
        if isinstance(one, str) and one in entries:
            keys.append(one)
            continue
        try:
            claim = get(one) if isinstance(one, str) else one
        except KeyError as error:
            raise KeyError(f"{error.args[0]} Citation keys are {', '.join(entries)}.") from error
        keys += [claim.source, *([PAPER] if claim.makes_precise and claim.source == FRAMEWORK else [])]
    return "\n\n".join(entries[key] for key in dict.fromkeys(keys))


def references() -> dict[str, str]:
    """Every BibTeX entry of the package, by key."""
    text = resources.files("tradeoff").joinpath("references.bib").read_text()
    entries = re.split(r"\n\n(?=@)", text.strip())
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}
