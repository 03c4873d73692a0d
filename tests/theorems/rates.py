"""How often wrong theorems are found out, and how near the falsifier comes to bounds that are attained.

`python -m tests.theorems.rates` prints both and writes them to `docs/evidence/falsifier.json`; it takes some twenty minutes.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

import tradeoff
from tests.theorems.mutants import MUTANTS
from tradeoff import theorems
from tradeoff.theorems import Theorem

KEY = jax.random.key(4)
INSTANCES, RESTARTS = 10_000, 64
NEAR = 0.99
OUT = Path(__file__).parents[2] / "docs" / "evidence" / "falsifier.json"


def main() -> None:
    """Attack the bank of wrong theorems and every bound that is attained somewhere."""
    attained = [claim for claim in theorems.all() if claim.tight is not None and claim.tight.ratio == 1.0]
    with ThreadPoolExecutor(2) as pool:
        wrong = dict(zip(MUTANTS, pool.map(lambda make: judge(make()), MUTANTS.values()), strict=True))
        ratios = dict(zip((claim.name for claim in attained), pool.map(reached, attained), strict=True))
    found = {way: sum(row[way] for row in wrong.values()) for way in ("verify", "falsify")}
    near = sum(ratio >= NEAR for ratio in ratios.values())
    summary = {
        "package": f"tradeoff {tradeoff.__version__}",
        "instances": INSTANCES,
        "restarts": RESTARTS,
        "wrong theorems": len(wrong),
        "found by verify": found["verify"],
        "found by falsify": found["falsify"],
        "attained bounds": len(ratios),
        f"reached to {NEAR}": near,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(summary | {"missed": missed(wrong), "ratios": ratios}, indent=1, ensure_ascii=False)
    OUT.write_text(text + "\n")
    print(json.dumps(summary, indent=1))


def judge(claim: Theorem) -> dict[str, bool]:
    """Whether random instances break a wrong theorem, and whether the falsifier does."""
    row = {
        "verify": not theorems.verify(claim, KEY, INSTANCES).holds,
        "falsify": theorems.falsify(claim, KEY, RESTARTS).broken,
    }
    print(claim.name, claim.title, row, flush=True)
    return row


def reached(claim: Theorem) -> float:
    """The ratio that the falsifier reaches from random starts."""
    ratio = theorems.falsify(claim, KEY, RESTARTS).ratio
    print(claim.name, ratio, flush=True)
    return ratio


def missed(wrong: dict[str, dict[str, bool]]) -> dict[str, list[str]]:
    """The wrong theorems that each of the two passed."""
    return {way: [name for name, row in wrong.items() if not row[way]] for way in ("verify", "falsify")}


if __name__ == "__main__":
    main()
