"""How many slips of the pen in the theory's own code its tests find.

`python -m tests.mutation` applies random mutations to the package, one at a time, to copies of it, runs the tests of the
mutated module on each, and writes what survived to `docs/evidence/mutation.json`; `--again` tries only what survived the
last time. A survivor that changes nothing that a caller can see is named in `EQUIVALENT`, with the reason, after somebody
read it; it does not count. The mutations are cosmic-ray's
(`pip install 'tradeoff[mutation]'`), less those that no test could or any test would find: decorators taken off (a function
that is not compiled gives the same numbers), type annotations, and operators of another kind than the one replaced.
"""

import ast
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from tqdm import tqdm

from tradeoff import theorems
from tradeoff._files import write_atomically

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "evidence" / "mutation.json"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.json")
SEED, WORKERS, PATIENCE = 0, 2, 900
ARITHMETIC, ORDER = {"Add", "Sub", "Mul", "Div", "Pow"}, {"Lt", "LtE", "Gt", "GtE"}
KINDS = [ARITHMETIC, ORDER, {"Eq", "NotEq"}, {"Is", "IsNot"}, {"In", "NotIn"}, {"BitAnd", "BitOr"}, {"USub", "UAdd"}]
LEFT_OUT = {"RemoveDecorator", "VariableReplacer", "VariableInserter", "ExceptionReplacer"}
REGISTRY = "tests/theorems/test_registry_verify.py"
CHECKS = (
    "test_it_holds_on_random_instances",
    "test_it_is_tight_where_it_says",
    "test_it_fails_without_the_assumption_and_only_for_want_of_it",
)
ENGINE = ["tests/theorems/test_engine.py", "tests/theorems/test_bring_your_own.py", "tests/theorems/test_falsify.py"]
ENGINE_FILES = ("claim", "verification", "tally", "falsification", "files", "registry", "together")
GENERATORS = (
    "draws",
    "instances",
    "landscapes",
    "class_instances",
    "feature_instances",
    "table_instances",
    "methods_instances",
)
"""Not mutated: another draw of instances is no error in a theorem."""


@dataclass(frozen=True)
class Room:
    """A part of the package, how many mutations of it are tried, the tests that should find them, quickest first, and for how long."""

    files: tuple[str, ...]
    sample: int
    tests: tuple[str, ...] = ()
    patience: int = PATIENCE


@dataclass(frozen=True)
class Mutant:
    """One change to one file, and what became of it: "killed", "survived", "timed out" (which counts as killed) or "equivalent"."""

    file: str
    line: int
    operator: str
    before: str
    after: str
    outcome: str = ""


def rooms() -> dict[str, Room]:
    """The rooms of the theory, by name."""

    def files(pattern: str, but: tuple[str, ...] = ()) -> tuple[str, ...]:
        found = sorted(ROOT.glob(pattern))
        return tuple(str(path.relative_to(ROOT)) for path in found if path.stem not in (*but, "__init__"))

    engine = tuple(f"tradeoff/theorems/{name}.py" for name in ENGINE_FILES)
    case_two = [
        str(path.relative_to(ROOT))
        for pattern in ("tests/test_parameter_constraint.py", "tests/parameter_constraint/test_*.py")
        for path in sorted(ROOT.glob(pattern))
    ]
    return {
        "divergences": Room(files("tradeoff/divergences*.py"), 40, ("tests/test_divergences.py", "tests/test_gaps.py")),
        "divergences of logits": Room(files("tradeoff/_logits.py"), 40, ("tests/test_divergences.py",)),
        "flows": Room(files("tradeoff/dynamics/*.py"), 40, ("tests/dynamics",)),
        "frontier": Room(files("tradeoff/frontier.py"), 40, ("tests/test_frontier.py",)),
        "loss_constraint": Room(
            files("tradeoff/loss_constraint.py"),
            50,
            ("tests/test_loss_constraint.py", "tests/theorems/test_golden.py"),
            patience=240,  # an interval that is never decided is halved for ever
        ),
        "parameter_constraint": Room(
            files("tradeoff/parameter_constraint*/*.py") or files("tradeoff/parameter_constraint.py"),
            30,
            tuple(case_two),
        ),
        "theorems, the engine": Room(engine, 20, tuple(ENGINE)),
        "theorems, the claims": Room(files("tradeoff/theorems/*.py", (*ENGINE_FILES, *GENERATORS)), 40),
    }


class Place(NamedTuple):
    """Where a mutation can be made: which operator's, and which of its places in the file."""

    file: str
    operator: str
    occurrence: int


def places_of(file: str) -> Iterator[Place]:
    """Every place in a file where a mutation can be made."""
    text = (ROOT / file).read_text()
    nodes, untouched = list(ast_nodes(get_ast(text))), _annotated(text)
    for name in plugins.operator_names():
        short = name.split("/")[1]
        if short in LEFT_OUT or not _of_one_kind(short):
            continue
        operator = plugins.get_operator(name)()
        positions = (start for node in nodes for start, _ in operator.mutation_positions(node))
        for occurrence, place in enumerate(positions):
            if not any(start <= place < end for start, end in untouched):
                yield Place(file, name, occurrence)


def mutated(place: Place) -> tuple[Mutant, str]:
    """The mutant at a place, and the whole mutated text."""
    text = (ROOT / place.file).read_text()
    new = mutate_code(text, plugins.get_operator(place.operator)(), place.occurrence)
    # An expression of several lines may come out in fewer, so only the first that differs is told.
    lines = enumerate(zip(text.split("\n"), new.split("\n"), strict=False), 1)
    line, before, after = next((i, old, line) for i, (old, line) in lines if old != line)
    return Mutant(place.file, line, place.operator.split("/")[1], before.strip(), after.strip()), new


def _of_one_kind(operator: str) -> bool:
    found = re.fullmatch(r"Replace(?:Binary|Comparison|Unary)Operator_(\w+?)_(\w+)", operator)
    return found is None or found[1] == "Delete" or any({found[1], found[2]} <= kind for kind in KINDS)


def _annotated(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the type annotations stand, as (line, column) from and to."""
    nodes = ast.walk(ast.parse(text))
    notes = [
        note for node in nodes for note in (getattr(node, "annotation", None), getattr(node, "returns", None)) if note
    ]
    return [((note.lineno, note.col_offset), (note.end_lineno or 0, note.end_col_offset or 0)) for note in notes]


@functools.cache
def tests_of(path: str, room: Room) -> tuple[str, ...]:
    """The tests that should find a mutant of a file; a module of claims has those of its claims in the registry."""
    if room.tests:
        return (*room.tests, path)
    module = path.removesuffix(".py").replace("/", ".")
    own = [claim for claim in theorems.all() if claim.sides.__module__ == module]
    items = [
        item
        for claim in own
        for check, with_tag in zip(CHECKS, (False, False, True), strict=True)
        for item in _items(check, claim, with_tag)
    ]
    rest = [str(file.relative_to(ROOT)) for file in sorted((ROOT / "tests" / "theorems").glob("test_*.py"))]
    stem = Path(path).stem.removeprefix("_").split("_")[0]
    named = [file for file in rest if stem in file or (stem == "methods" and "methods" in file)]
    return (*items, *named, "tests/theorems/test_golden.py", "tests/theorems/test_case_two.py", path)


def _items(check: str, claim: theorems.Theorem, with_tag: bool) -> list[str]:
    if "tight" in check and claim.tight is None:
        return []
    tags = [tag for tag, made in claim.without.items() if callable(made)] if with_tag else [""]
    names = [f"{claim.name}{'-' if tag else ''}{tag}" for tag in tags]
    return [f"{REGISTRY}::{check}[{name.encode('unicode_escape').decode()}]" for name in names]  # as pytest writes them


def judge(mutant: Mutant, text: str, tests: tuple[str, ...], copy: Path, patience: int = PATIENCE) -> Mutant:
    """What the tests say of a mutant, in a copy of the project."""
    original = (copy / mutant.file).read_text()
    try:
        (copy / mutant.file).write_text(text)
        outcome = "survived" if passes(tests, copy, patience) else "killed"
    except subprocess.TimeoutExpired:
        outcome = "timed out"
    finally:
        (copy / mutant.file).write_text(original)
    return Mutant(**asdict(mutant) | {"outcome": outcome})


def passes(tests: tuple[str, ...], copy: Path, patience: int = PATIENCE) -> bool:
    """Whether the tests pass in a copy of the project."""
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=no", *tests]
    # Seconds of the processor, so that a busy machine makes no mutant look as if it hung.
    limited = ["sh", "-c", f'ulimit -t {patience}; exec "$@"', "sh", *command]
    run = subprocess.run(limited, check=False, cwd=copy, env=environment, capture_output=True)
    if run.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise subprocess.TimeoutExpired(command, patience)
    return run.returncode == 0


def main(arguments: list[str]) -> None:
    """Sample, judge and record; rooms by name, all unless told."""
    names = [argument for argument in arguments if argument != "--again"]
    if unknown := set(names) - set(rooms()):
        raise SystemExit(f"no room is named {', '.join(unknown)}; there are {', '.join(rooms())}.")
    kept = json.loads(OUT.read_text()) if OUT.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for number in range(WORKERS):
            copies.put(_copy(Path(folder) / str(number)))

        def run(place: Place, room: Room) -> Mutant:
            copy = copies.get()
            try:
                return judge(*mutated(place), tests_of(place.file, room), copy, room.patience)
            finally:
                copies.put(copy)

        for name, room in rooms().items():
            if names and name not in names:
                continue
            every = [place for file in room.files for place in places_of(file)]
            chosen = random.Random(SEED).sample(every, min(room.sample, len(every)))
            tried = len(chosen)
            if "--again" in arguments:
                alive = [_told_apart(one) for one in kept[name]["survivors"]]
                chosen = [place for place in chosen if _told_apart(asdict(mutated(place)[0])) in alive]
            whole = tuple(dict.fromkeys(test for place in chosen for test in tests_of(place.file, room)))
            if whole and not passes(whole, Path(folder) / "0"):
                raise SystemExit(f"{name}: its tests fail without any mutation: {' '.join(whole)}")
            with ThreadPoolExecutor(WORKERS) as pool, tqdm(desc=name, total=len(chosen), unit="mutant") as bar:
                tasks = [pool.submit(run, place, room) for place in chosen]
                judged = []
                for task in tasks:
                    judged.append(task.result())
                    bar.update()
            kept[name] = _summary(judged, tried, len(every))
            text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
            write_atomically(OUT, lambda beside, text=text: beside.write_text(text))
            print(name, {key: value for key, value in kept[name].items() if not isinstance(value, list)})


def _copy(to: Path) -> Path:
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(".*", "reproduced", "site", "__pycache__", "gallery"))
    return to


def _told_apart(mutant: dict) -> tuple[str, str, str]:
    return mutant["file"], mutant["before"], mutant["after"]


def _summary(judged: list[Mutant], tried: int, possible: int) -> dict:
    """What is recorded of a room: of the mutants that change something, which share was killed."""
    reasons = {_told_apart(one): one["reason"] for one in json.loads(EQUIVALENT.read_text())}
    survivors = [asdict(mutant) for mutant in judged if mutant.outcome == "survived"]
    same = [
        one | {"outcome": "equivalent", "reason": reasons[_told_apart(one)]}
        for one in survivors
        if _told_apart(one) in reasons
    ]
    alive = [one for one in survivors if _told_apart(one) not in reasons]
    share = round(1 - len(alive) / (tried - len(same)), 3)
    return {
        "possible": possible,
        "tried": tried,
        "changed nothing": len(same),
        "killed of the others": share,
        "survivors": alive + same,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
