"""Run the experiments, draw their figures, write the report: `python -m experiments`.

Results that are whole and were made by the same sources and settings are kept, so a run that was interrupted goes on
where it stopped. Toy experiments run two at a time, each in its own process; the checkpoint has the machine to itself.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.catalogue import CATALOGUE, Entry, entry
from experiments.report import write_report
from tradeoff import plotting, studies

AT_ONCE = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run what it names."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description="Run the experiments, draw their figures, write the report."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to run; all of them unless told")
    parser.add_argument("--toy", action="store_true", help="leave out the experiments on a real checkpoint")
    parser.add_argument("--out", type=Path, default=Path("reproduced"), help="the folder for data, figures and report")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # a child: run one, here
    options = parser.parse_args(arguments)
    chosen = [entry(name) for name in options.names] or [e for e in CATALOGUE if not (options.toy and e.checkpoint)]
    if options.one:
        run(chosen[0], options.out)
        return
    began = time.perf_counter()
    for leftover in (options.out / "data").glob(".*.nc"):  # what a run that was killed had begun to write
        leftover.unlink()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda one: _run_apart(one, options.out), [e for e in chosen if not e.checkpoint]))
    print(f"toy experiments: {time.perf_counter() - began:.0f} s", flush=True)
    for one in (e for e in chosen if e.checkpoint):
        _run_apart(one, options.out)
    report = write_report(chosen, options.out)
    print(f"all of it: {time.perf_counter() - began:.0f} s\nopen {report}", flush=True)


def run(one: Entry, out: Path) -> None:
    """Make the data of one experiment, unless they are there, and draw its figure."""
    settings = one.experiment.Settings()
    made_by = studies.provenance(
        settings,
        Path(str(one.experiment.__file__)),
        Path(__file__).with_name("common.py"),
        libraries=("torch", "transformers", "peft") if one.checkpoint else (),
    )
    path = out / "data" / f"{one.name}.nc"
    data = studies.load(path, made_by["cell"])
    if data is None:
        began = time.perf_counter()
        data = one.experiment.run(settings, out / "cells" / one.name)
        data.attrs |= made_by
        studies.save(data, path)
        print(f"{one.name}: {time.perf_counter() - began:.0f} s", flush=True)
    else:
        print(f"{one.name}: unchanged, kept", flush=True)
    with plotting.style():
        plotting.save(one.figure.draw(data), out / "figures" / one.name)


def _run_apart(one: Entry, out: Path) -> None:
    command = [sys.executable, "-m", "experiments", "--one", one.name, "--out", str(out)]
    # Threads of torch that spin while they wait slow everything else on the machine several times over.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    if subprocess.run(command, check=False, env=environment).returncode:
        raise SystemExit(
            f"{one.name} did not finish; what it had made is kept in {out}, and the same command goes on from there."
        )


if __name__ == "__main__":
    main()
