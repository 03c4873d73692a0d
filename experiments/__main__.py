"""Run the experiments, draw their figures, write the report: `python -m experiments`.

The work is a graph (`experiments/Snakefile`): what is finished is kept, a run that was killed goes on where it stopped, and
after a change of code or settings only what depends on it is made again. Toy experiments run two at a time; a checkpoint has
the machine to itself.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from experiments.catalogue import Entry, asked, everything

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run what it names."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description="Run the experiments, draw their figures, write the report."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments to run; all of them unless told")
    parser.add_argument(
        "--toy", action="store_true", help="leave out what takes minutes: checkpoints and the small transformer"
    )
    parser.add_argument("--out", type=Path, default=Path("reproduced"), help="the folder for data, figures and report")
    parser.add_argument(
        "--profile", type=Path, default=HERE / "profiles" / "local", help="where to run: this machine, or slurm"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be made")
    parser.add_argument("--check", type=Path, metavar="RESULT", help="make a result again and compare")
    # One job of the workflow, or what the workflow is made of.
    parser.add_argument("--do", choices=("plan", "make", "report"), help=argparse.SUPPRESS)
    parser.add_argument("--cell", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.check:
            _check(options.check)
        chosen = [asked(name) for name in options.names] or everything(options.toy)
        if options.do:
            do(options.do, chosen, options.out, options.cell)
        else:
            start(chosen, options.out, options.profile, options.dry_run)
    except OSError as error:  # a disk that is full, a folder that is closed
        raise SystemExit(f"{parser.prog}: {error}") from error


def run(one: Entry, out: Path) -> None:
    """Make the data of one experiment, unless they are there, draw its figure, and publish both."""
    from experiments import jobs

    jobs.draw(one, out)
    if not jobs.publish(one, out):
        print(f"{one.name}: unchanged, kept", flush=True)


def do(kind: str, chosen: Sequence[Entry], out: Path, cell: str) -> None:
    """One job of the workflow, or what the workflow is made of."""
    from experiments import jobs, plan
    from experiments.cells import cell_of

    one = chosen[0]
    if kind == "plan":
        print(json.dumps(plan.as_json(plan.plan(chosen))))
    elif kind == "report":
        print(f"open {jobs.report(chosen, out)}", flush=True)
    elif cell:
        jobs.make(one, out, cell_of(one.experiment, one.experiment.Settings(), cell))
    else:
        jobs.draw(one, out)


def _check(result: Path) -> None:
    from experiments.check import check

    try:
        raise SystemExit(check(result))
    except ValueError as error:
        raise SystemExit(str(error)) from error


def start(chosen: Sequence[Entry], out: Path, profile: Path, dry_run: bool) -> None:
    """Become the workflow.

    Raises:
        SystemExit: when the folder cannot be written, or there is no such profile.
    """
    if not (profile / "config.yaml").is_file():
        raise SystemExit(f"{profile} holds no config.yaml; profiles are {HERE / 'profiles'}/local and /slurm.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise SystemExit(
            f"the folder {out} cannot be written ({error.strerror}); make it writable, or give another one with --out."
        ) from error
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HERE / "Snakefile"), "--directory", str(out)]
    command += ["--profile", str(profile.resolve()), "--config", f"names={','.join(one.name for one in chosen)}"]
    command += ["--dry-run"] if dry_run else []
    # Threads of torch that spin while they wait slow everything else on the machine several times over.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
