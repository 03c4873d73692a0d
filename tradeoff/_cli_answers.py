"""How the commands answer: numbers on the output, a refusal on the error output."""

import json
import sys


def report(numbers: dict[str, float], as_json: bool) -> int:
    """Print numbers by name; the exit status."""
    print(json.dumps(numbers, indent=1) if as_json else "\n".join(f"{k:>24s}  {v:.6g}" for k, v in numbers.items()))
    return 0


def refuse(message: str) -> int:
    """Say why nothing was done; the exit status."""
    print(f"tradeoff: {message}", file=sys.stderr)
    return 2
