"""Views to begin with: the named worlds of the theory and the paper's experiments."""

from collections.abc import Mapping
from math import log10
from types import MappingProxyType

from tradeoff.explorer.view import View

PRESETS: Mapping[str, View] = MappingProxyType(
    {
        "E1: near proxy": View(similarity=0.9),
        "E1: far proxy": View(similarity=0.5),
        "E2: low overlap": View(overlap=0.1, similarity=1.0),
        "E2: medium overlap": View(overlap=0.4, similarity=1.0),
        "E2: high overlap": View(overlap=0.9, similarity=1.0),
        "E3: ball of a tenth": View(similarity=1.0, radius=0.1),
        "E4: penalised too much": View(world="over-penalised", log10_penalty=1.0),
        "Golden world": View(world="golden", similarity=1.0),
        "Late minimum": View(world="late-minimum", log10_penalty=log10(0.19388)),
        "Two minima": View(world="two-minima", log10_penalty=log10(1.534188)),
        "One conflict": View(world="one-conflict", overlap=0.2, similarity=1.0),
        "Large random world": View(contexts=64, responses=16),
    }
)
"""Each preset by the name that the page shows."""
