"""What a run of `verify` has found so far, and the file that keeps it."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

import tradeoff
from tradeoff._files import write_atomically
from tradeoff.theorems.claim import Theorem


@dataclass(frozen=True)
class Tally:
    """The instances checked so far: how many, how many failed, the tightest ratio, and the worst one.

    Args:
        checked: how many.
        violations: how many violated the claim.
        tightest: the greatest ratio of the smaller side to the larger one.
        worst_rank: what orders instances from worst to best.
        worst_slack: the worst one's relative slack.
        worst_index: its number.
        worst_part: the part that is worst there.
        worst_sides: both sides of that part.
    """

    checked: int = 0
    violations: int = 0
    tightest: float = -np.inf
    worst_rank: float = np.inf
    worst_slack: float = np.inf
    worst_index: int = 0
    worst_part: int = 0
    worst_sides: tuple[float, float] = (np.nan, np.nan)

    def with_batch(self, found: Any, checked: int) -> "Tally":
        """The tally after a batch that began at `self.checked`."""
        tally = replace(
            self,
            checked=checked,
            violations=self.violations + int(found.violations),
            tightest=max(self.tightest, float(found.ratio)),
        )
        if not found.rank < self.worst_rank:
            return tally
        return replace(
            tally,
            worst_rank=float(found.rank),
            worst_slack=float(found.slack),
            worst_index=self.checked + int(found.at),
            worst_part=int(found.part),
            worst_sides=(float(found.left), float(found.right)),
        )


EMPTY = Tally()


@dataclass(frozen=True)
class Record:
    """A file with the tally of one claim under one key; that of any other is not read.

    Args:
        path: the JSON file.
        theorem: the claim.
        key: the random key.
    """

    path: Path
    theorem: Theorem
    key: Array

    def read(self) -> Tally:
        """The tally in the file; an empty one when there is none, or it is of another claim, key or code.

        Raises:
            ValueError: when the file is there and is no record.
        """
        if not self.path.exists():
            return EMPTY
        try:
            kept = json.loads(self.path.read_text())
            if kept["of"] != self._of:
                return EMPTY
            tally = kept["tally"]
            return Tally(**tally | {"worst_sides": tuple(tally["worst_sides"])})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is no record of a verification ({error}); delete it and run again."
            ) from error

    def write(self, tally: Tally, worst_instance: Any) -> None:
        """Put the tally into the file, with the worst instance in full."""
        leaves = jax.tree_util.tree_leaves_with_path(worst_instance)
        arrays = {
            jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf).tolist() for path, leaf in leaves
        }
        text = json.dumps({"of": self._of, "tally": asdict(tally), "worst_instance": arrays}, indent=1)
        write_atomically(self.path, lambda beside: beside.write_text(text + "\n"))

    @property
    def _of(self) -> dict[str, Any]:
        """What the tally counts: claim, key, and a digest of the code that can change what is counted."""
        files = [*sorted(Path(tradeoff.__file__).parent.rglob("*.py")), Path(self.theorem.sides.__code__.co_filename)]
        code = hashlib.sha256(b"\0".join(file.read_bytes() for file in files if file.is_file())).hexdigest()
        return {"claim": self.theorem.name, "key": np.asarray(jax.random.key_data(self.key)).tolist(), "code": code}
