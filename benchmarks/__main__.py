"""Run the benchmarks: `python -m benchmarks [NAME ...]`, a process for each; the exit code is 1 when a bar is missed."""

import argparse
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmarks
from benchmarks import protocol
from benchmarks.machine import pin

NOT_SUBJECTS = ("__main__", "machine", "page", "protocol", "scaling", "told")


def subjects() -> list[str]:
    """The modules that hold benchmarks."""
    return sorted(found.name for found in pkgutil.iter_modules(benchmarks.__path__) if found.name not in NOT_SUBJECTS)


def of(subject: str) -> Sequence[protocol.Benchmark]:
    """The benchmarks of a subject."""
    return importlib.import_module(f"benchmarks.{subject}").BENCHMARKS


def collect() -> dict[str, tuple[str, protocol.Benchmark]]:
    """Every benchmark by name, with its subject.

    Raises:
        ValueError: when two benchmarks have one name.
    """
    found: dict[str, tuple[str, protocol.Benchmark]] = {}
    for subject in subjects():
        for each in of(subject):
            if each.name in found:
                raise ValueError(f"benchmarks {found[each.name][0]} and {subject} both have one named {each.name!r}.")
            found[each.name] = (subject, each)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run what it names, say what falls short."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the package against its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks or subjects; all of them unless told")
    parser.add_argument("--out", type=Path, default=Path("reproduced/benchmarks"), help="the folder of the results")
    parser.add_argument(
        "--one", metavar="SUBJECT", help=argparse.SUPPRESS
    )  # a child: measure one of this subject, here
    options = parser.parse_args(arguments)
    if options.one:
        (found,) = (each for each in of(options.one) if each.name == options.names[0])
        result = protocol.measure(found)
        protocol.save(result, options.out)
        print(protocol.table(result), flush=True)
        return
    known = collect()
    if unknown := [name for name in options.names if name not in known and name not in subjects()]:
        parser.error(f"no benchmark or subject is named {unknown[0]!r}; there are {', '.join([*subjects(), *known])}.")
    chosen = [name for name, (subject, _) in known.items() if not options.names or {name, subject} & {*options.names}]
    environment, short = pin(), []
    for name in chosen:
        command = [sys.executable, "-m", "benchmarks", "--one", known[name][0], name, "--out", str(options.out)]
        if subprocess.run(command, check=False, env=environment).returncode:
            short.append(f"{name}: did not finish")
            continue
        result = json.loads((options.out / f"{name}.json").read_text(encoding="utf-8"))
        short += [f"{name}: {what}" for what in protocol.missed(result)]
    if any((options.out / f"{name}.json").exists() for name in known):
        subprocess.run([sys.executable, "-m", "benchmarks.page", str(options.out)], check=True, env=environment)
    print("\n".join([f"{len(chosen)} benchmarks, {len(short)} shortfalls", *short]), flush=True)
    raise SystemExit(bool(short))


if __name__ == "__main__":
    main()
