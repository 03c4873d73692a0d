"""The command line: `tradeoff verify`, `frontier`, `strategies`, `document`, `explore`, `check` and `lm ...`."""

import difflib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from tradeoff._cli_answers import refuse
from tradeoff.cli_lm import Finetune, Measure, Preflight

if TYPE_CHECKING:
    from tradeoff.theorems import Falsification, Theorem, Verdict


@dataclass(frozen=True)
class Verify:
    """Check theorems on random instances, or try to break them; exit with 1 when one fails.

    Attributes:
        names: theorems to check, such as T4a, or Python files that define some with @tradeoff.theorem; all registered
            ones unless told.
        instances: random instances of each.
        falsify: climb towards a violation as well, and report the tightest instance.
        restarts: ascents of the falsifier.
        seed: seed of the random instances.
        record: folder that keeps the runs: stopped, they go on; asked for more, they draw only the rest.
        processes: how many share the registered theorems; one for each core unless told.
        list_only: only list the theorems.
        json: print JSON for a machine to read.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    instances: int = 10_000
    falsify: bool = False
    restarts: int = 64
    seed: int = 0
    record: Path | None = None
    processes: int = os.cpu_count() or 1
    list_only: Annotated[bool, tyro.conf.arg(name="list")] = False
    json: bool = False

    def run(self) -> int:
        """Print one line for each theorem as its verdict comes in."""
        from tradeoff import theorems

        try:
            claims = [claim for name in self.names for claim in _claims(name)] or list(theorems.all())
        except (KeyError, ValueError) as error:
            return refuse(error.args[0])
        for name in ("instances", "restarts", "processes"):
            if getattr(self, name) < 1:
                return refuse(f"--{name} is {getattr(self, name)}; at least 1 is required.")
        if self.list_only:
            for claim in claims:
                print(f"{claim.name:14s} {claim.title}")
            return 0
        rows = []
        try:
            for verdict, attack in self._verdicts(claims):
                rows.append(_row(verdict, attack))
                if not self.json:
                    print(_line(rows[-1]) if verdict.holds else verdict, flush=True)
                    if attack is not None:
                        print(f"    {attack}", flush=True)
        except ValueError as error:
            return refuse(str(error))
        held = sum(row["holds"] and not row.get("broken", False) for row in rows)
        print(
            json.dumps(rows, indent=1)
            if self.json
            else f"{held} of {len(rows)} hold on {self.instances:,} instances each."
        )
        return int(held < len(rows))

    def _verdicts(self, claims: "Sequence[Theorem]") -> "Iterator[tuple[Verdict, Falsification | None]]":
        """The verdict on each claim, and the attack on it when one was asked for, under a progress bar."""
        import jax
        from tqdm import tqdm

        from tradeoff import theorems

        key, done = jax.random.key(self.seed), dict.fromkeys((claim.name for claim in claims), 0)
        total, quiet = len(claims) * self.instances, not sys.stderr.isatty()
        with tqdm(total=total, unit=" instances", unit_scale=True, leave=False, disable=quiet) as bar:

            def advance(claim: "Theorem", count: int) -> None:
                bar.update(count - done[claim.name])
                done[claim.name] = count

            # An attack has the machine to itself, so the verdicts come one at a time then.
            groups = [[claim] for claim in claims] if self.falsify else [claims]
            for group in groups:
                for verdict in theorems.verify_each(group, key, self.instances, advance, self.record, self.processes):
                    yield verdict, theorems.falsify(verdict.theorem, key, self.restarts) if self.falsify else None


@dataclass(frozen=True)
class Frontier:
    """Print the exact Pareto frontier of a world, its limit, and what its proxy does.

    Attributes:
        world: a JSON file with "safety" and "capability" (and optionally "proxy"), each with "p" and "P".
        least: the least penalty.
        greatest: the greatest penalty.
        count: how many penalties, evenly in log λ.
        json: print JSON for a machine to read.
    """

    world: tyro.conf.Positional[Path]
    least: float = 1e-2
    greatest: float = 1e2
    count: int = 9
    json: bool = False

    def run(self) -> int:
        """Print one row for each penalty."""
        import tradeoff as to

        if not (0 < self.least < self.greatest < np.inf and self.count >= 2):
            return refuse(
                f"--least is {self.least}, --greatest {self.greatest}, --count {self.count}; "
                "0 < least < greatest and at least two penalties are required."
            )
        try:
            world = to.worlds.read(self.world)
            best = to.loss_constraint.best_penalty(world)
        except ValueError as error:
            return refuse(str(error))
        lam = np.geomspace(self.least, self.greatest, self.count)
        front = to.frontier.exact(world, lam)
        trained = to.loss_constraint.gaps(world, lam)
        limit = to.frontier.lower_limit(world, front.safety_gap)
        columns = {
            "penalty": lam,
            "safety_gap": front.safety_gap,
            "capability_gap": front.capability_gap,
            "limit": limit,
            "safety_gap_with_proxy": trained.safety,
            "capability_gap_with_proxy": trained.capability,
        }
        table = {name: np.asarray(column).tolist() for name, column in columns.items()}
        summary = world.summary() | {"best_penalty": best}
        if self.json:
            print(json.dumps({"world": summary, "frontier": table}, indent=1))
            return 0
        for name, value in summary.items():
            print(f"{name.replace('_', ' '):>28s}  {value:.6g}")
        shown = ("penalty", "safety_gap", "capability_gap", "limit") + ("safety_gap_with_proxy",) * (
            world.proxy is not None
        )
        print("\n" + "  ".join(f"{name.replace('_', ' '):>22s}" for name in shown))
        for row in zip(*(table[name] for name in shown), strict=True):
            print("  ".join(f"{value:22.9g}" for value in row))
        return 0


@dataclass(frozen=True)
class Strategies:
    """List every fine-tuning strategy: its kind, what it needs beside the task's data, and its source.

    Attributes:
        json: print JSON for a machine to read.
    """

    json: bool = False

    def run(self) -> int:
        """Print one line for each."""
        from tradeoff.strategies import registry

        rows = registry.table()
        if self.json:
            print(json.dumps(rows, indent=1))
            return 0
        for row in ({"name": "name", "kind": "kind", "needs": "needs", "source": "source"}, *rows):
            print(f"{row['name']:20s} {row['kind']:10s} {row['source']:22s} {row['needs']}")
        return 0


@dataclass(frozen=True)
class Document:
    """Write a Markdown page with a drawing for each theorem, and an index of them.

    Attributes:
        folder: where the pages go.
        names: theorems, or Python files that define some; all registered ones unless told.
        seed: seed of the random instances that the drawings show.
    """

    folder: tyro.conf.Positional[Path]
    names: tyro.conf.Positional[tuple[str, ...]] = ()
    seed: int = 0

    def run(self) -> int:
        """Write the pages under a progress bar."""
        import jax
        from tqdm import tqdm

        from tradeoff import theorems

        try:
            from tradeoff import documents
        except ModuleNotFoundError as error:
            return refuse(f"pages need {error.name}; install it with: pip install 'tradeoff[docs]'")
        try:
            claims = [claim for name in self.names for claim in _claims(name)] or list(theorems.all())
            with tqdm(total=len(claims), unit="page", disable=not sys.stderr.isatty()) as bar:
                written = documents.write_pages(claims, self.folder, jax.random.key(self.seed), lambda _: bar.update())
        except (KeyError, ValueError) as error:
            return refuse(error.args[0])
        print(written)
        return 0


@dataclass(frozen=True)
class Explore:
    """Open a local page with sliders: a world's frontier, bounds and flow, live; for this machine alone.

    Attributes:
        port: the page is at http://127.0.0.1:PORT/.
        browser: open the page in a browser.
    """

    port: int = 8642
    browser: bool = True

    def run(self) -> int:
        """Serve the page until it is interrupted."""
        try:
            from tradeoff.explorer import server
        except ModuleNotFoundError as error:
            return refuse(f"the explorer needs {error.name}; install it with: pip install 'tradeoff[explore]'")
        try:
            server.serve(self.port, self.browser)
        except ValueError as error:
            return refuse(str(error))
        return 0


@dataclass(frozen=True)
class Check:
    """Make a result of an experiment again from the settings in its file, and compare; exit with 1 when it differs.

    Attributes:
        result: a netCDF file of `make reproduce`.
    """

    result: tyro.conf.Positional[Path]

    def run(self) -> int:
        """Have the experiments of this checkout do it: the package itself knows none and runs none."""
        root = Path(__file__).parents[1]
        if not (root / "experiments" / "check.py").is_file():
            return refuse(
                f"results are made again by the experiments of the repository, and {root} is no checkout of it; clone it "
                "and install the package from there: pip install -e ."
            )
        command = [sys.executable, "-m", "experiments", "--check", str(self.result.resolve())]
        return subprocess.run(command, cwd=root, check=False).returncode


COMMANDS = ("verify", "frontier", "strategies", "document", "explore", "check", "lm")
LM_COMMANDS = ("measure", "preflight", "finetune")


def main() -> None:
    """Run the command line."""
    words = sys.argv[1:3]
    for word, known in zip(words, (COMMANDS, LM_COMMANDS if words[0] == "lm" else ()), strict=False):
        if known and word not in known and not word.startswith("-"):
            raise SystemExit(refuse(_unknown(word, known)))
    command = tyro.cli(
        tyro.conf.OmitSubcommandPrefixes[
            Annotated[Verify, tyro.conf.subcommand("verify")]
            | Annotated[Frontier, tyro.conf.subcommand("frontier")]
            | Annotated[Strategies, tyro.conf.subcommand("strategies")]
            | Annotated[Document, tyro.conf.subcommand("document")]
            | Annotated[Explore, tyro.conf.subcommand("explore")]
            | Annotated[Check, tyro.conf.subcommand("check")]
            | Annotated[
                Annotated[Measure, tyro.conf.subcommand("measure")]
                | Annotated[Preflight, tyro.conf.subcommand("preflight")]
                | Annotated[Finetune, tyro.conf.subcommand("finetune")],
                tyro.conf.subcommand("lm", description="Measure, foretell and fine-tune language models."),
            ]
        ],
        prog="tradeoff",
        description="How much safety must fine-tuning cost? Gaps are in nats.",
    )
    raise SystemExit(command.run())


def _unknown(word: str, known: Sequence[str]) -> str:
    """That a word names nothing, and what was meant."""
    near = difflib.get_close_matches(word, known, n=1)
    meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
    return f"no command is named {word!r}; {meant} `tradeoff --help` says what each does."


def _claims(name: str) -> "Sequence[Theorem]":
    """The claims of a file, or the registered one of a name."""
    from tradeoff import theorems

    return theorems.load(name) if name.endswith(".py") or Path(name).is_file() else (theorems.get(name),)


def _row(verdict: "Verdict", attack: "Falsification | None") -> dict[str, Any]:
    """What is printed of a verdict and an attack, as JSON values."""
    row: dict[str, Any] = {
        "name": verdict.theorem.name,
        "title": verdict.theorem.title,
        "proved": verdict.theorem.proved,
        "holds": verdict.holds,
        "instances": verdict.instances,
        "violations": verdict.violations,
        "tightest": None if np.isnan(verdict.tightest) else verdict.tightest,
        "worst_slack": verdict.worst_slack,
        "worst_index": verdict.worst_index,
    }
    if attack is not None:
        row |= {"broken": attack.broken, "attack_ratio": None if np.isnan(attack.ratio) else attack.ratio}
        row["refuted"] = attack.refuted
    return row


def _line(row: dict) -> str:
    tightest = "equal" if row["tightest"] is None else f"{row['tightest']:.6f}"
    kind = "" if row["proved"] else "  (conjecture)"
    return f"{row['name']:14s} holds  tightest {tightest:>9s}  {row['title']}{kind}"
