"""How often wrong theorems are found out, and how near the falsifier comes to bounds that are attained.

`python -m tests.theorems.rates` prints both and writes them to `docs/evidence/falsifier.json`; it takes some twenty minutes.
"""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax

import tradeoff
from tests.theorems.mutants import MUTANTS
from tradeoff import theorems

KEY = jax.random.key(4)
INSTANCES, RESTARTS = 10_000, 64
NEAR = 0.99
OUT = Path(__file__).parents[2] / "docs" / "evidence" / "falsifier.json"


def main() -> None:
    """Attack the bank of wrong theorems and every bound that is attained somewhere."""
    attained = [claim for claim in theorems.all() if claim.tight is not None and claim.tight.ratio == 1.0]
    names = [claim.name for claim in attained]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        wrong = dict(zip(MUTANTS, pool.map(judge, MUTANTS), strict=True))
        ratios = dict(zip(names, pool.map(reached, names), strict=True))
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


def judge(name: str) -> dict[str, bool]:
    """Whether random instances break a wrong theorem, and whether the falsifier does."""
    claim = MUTANTS[name]()
    row = {
        "verify": not theorems.verify(claim, KEY, INSTANCES).holds,
        "falsify": theorems.falsify(claim, KEY, RESTARTS).broken,
    }
    print(name, row, flush=True)
    return row


def reached(name: str) -> float:
    """The ratio that the falsifier reaches from random starts."""
    ratio = theorems.falsify(theorems.get(name), KEY, RESTARTS).ratio
    print(name, ratio, flush=True)
    return ratio


def missed(wrong: dict[str, dict[str, bool]]) -> dict[str, list[str]]:
    """The wrong theorems that each of the two passed."""
    return {way: [name for name, row in wrong.items() if not row[way]] for way in ("verify", "falsify")}


if __name__ == "__main__":
    main()
