"""The pages of the reference: each public name once, and what the command line answers to --help.

`docs/hooks.py` gives them to mkdocs. Faces are read and no room is imported, so a page says what the face's text says.
"""

import ast
import contextlib
import io
import os
import sys
from pathlib import Path
from unittest import mock

from tradeoff import cli

ROOT = Path(__file__).parents[1]

# What is defined in a page of its own is only linked from the pages after it, so a room comes after its inner rooms.
PAGES = {
    "tradeoff.worlds": "Worlds",
    "tradeoff.gaps": "Gaps",
    "tradeoff.loss_constraint": "Case I: the loss constraint",
    "tradeoff.frontier": "The frontier",
    "tradeoff.parameter_constraint.projection": "Projections",
    "tradeoff.parameter_constraint": "Case II: the parameter constraint",
    "tradeoff.problems": "Problems",
    "tradeoff.dynamics": "Dynamics",
    "tradeoff.strategies.merges": "Merges",
    "tradeoff.strategies.registry": "The registry of strategies",
    "tradeoff.strategies": "Strategies",
    "tradeoff.tuning": "Tuning",
    "tradeoff.theorems.instances": "Instances of theorems",
    "tradeoff.theorems": "Theorems as objects",
    "tradeoff.landscape": "Landscape",
    "tradeoff.bridge.curvature": "Curvature of a checkpoint",
    "tradeoff.bridge.landscape": "Landscape of a checkpoint",
    "tradeoff.bridge": "The bridge to language models",
    "tradeoff.mechanism.pcfg": "Mechanism: prompts of a grammar",
    "tradeoff.mechanism.nullspace": "Mechanism: null spaces",
    "tradeoff.mechanism.transformer": "Mechanism: the transformer",
    "tradeoff.mechanism.safety_tuning": "Mechanism: safety tuning",
    "tradeoff.mechanism.small_study": "Mechanism: the study",
    "tradeoff.mechanism": "Mechanism",
    "tradeoff.studies": "Studies",
    "tradeoff.plotting": "Plotting",
    "tradeoff.explorer": "Explorer",
    "tradeoff.divergences": "Divergences",
    "tradeoff.tolerances": "Tolerances",
    "tradeoff.citations": "Citations",
    "tradeoff.documents": "Documents",
    "tradeoff": "Everything at a glance",
}
# Names that a face hands out by `__getattr__`.
ON_FIRST_USE = {
    "tradeoff": {"theorem": "tradeoff.theorems.claim.theorem", "cite": "tradeoff.citations.cite"},
    "tradeoff.mechanism": {"study": "tradeoff.mechanism.small_study.study"},
}
COMMANDS = ("verify", "frontier", "strategies", "document", "explore", "check")
LM_COMMANDS = ("lm measure", "lm preflight", "lm finetune")


def public_names(module: str) -> dict[str, str]:
    """Each public name of a module, with the dotted path of its definition, in the order of the source."""
    path = ROOT / module.replace(".", "/")
    if path.is_dir():
        found = {
            one.name: _definition(f"{node.module}.{one.name}")
            for node in _tree(module).body
            if isinstance(node, ast.ImportFrom)
            for one in node.names
            if one.asname == one.name and not _is_module(f"{node.module}.{one.name}")
        }
        return found | ON_FIRST_USE.get(module, {})
    defined: list[str] = []
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            defined += [one.id for one in targets if isinstance(one, ast.Name) and one.id.isupper()]
    return {name: f"{module}.{name}" for name in defined if not name.startswith("_")}


def pages() -> dict[str, str]:
    """The Markdown of every page, by its file name."""
    written: dict[str, str] = {}
    shown: dict[str, str] = {}
    for module, title in PAGES.items():
        written[file_of(module)] = _page(module, title, shown)
    written["command-line.md"] = command_line()
    return written


def nav() -> list[str]:
    """The pages in the order of the site: each room, and after it what is inside it."""
    rooms = [one for one in PAGES if one.count(".") == 1]
    inside = {room: sorted(one for one in PAGES if one == room or one.startswith(f"{room}.")) for room in rooms}
    return ["index.md", "command-line.md", *(file_of(one) for room in rooms for one in inside[room])]


def file_of(module: str) -> str:
    """The file name of a module's page."""
    return "index.md" if module == "tradeoff" else f"{module.removeprefix('tradeoff.')}.md"


def command_line() -> str:
    """What every command answers to --help."""
    lines = ["# The command line\n"]
    for command in COMMANDS + LM_COMMANDS:
        said = io.StringIO()
        with (
            mock.patch.object(sys, "argv", ["tradeoff", *command.split(), "--help"]),
            mock.patch.dict(os.environ, {"COLUMNS": "92", "NO_COLOR": "1"}),
            contextlib.redirect_stdout(said),
            contextlib.suppress(SystemExit),
        ):
            cli.main()
        lines += [f"## tradeoff {command}\n", f"```text\n{said.getvalue().strip()}\n```\n"]
    return "\n".join(lines)


def _page(module: str, title: str, shown: dict[str, str]) -> str:
    lines = [f"# {title}\n", f"`{module}`\n", f"::: {module}", "    options:", "      members: false"]
    lines += ["      show_root_heading: false", "      show_root_toc_entry: false", ""]
    rooms = [one for one in PAGES if one.rpartition(".")[0] == module]
    if rooms:
        lines += ["## Rooms\n", *(f"* [`{one}`]({file_of(one)}): {_summary(one)}" for one in rooms), ""]
    names = public_names(module)
    elsewhere = {name: definition for name, definition in names.items() if definition in shown}
    if elsewhere:
        lines += ["## Names described elsewhere\n"]
        lines += [f"* `{module}.{name}`: see [`{shown[home]}`][{home}]" for name, home in elsewhere.items()] + [""]
    for name, definition in names.items():
        if definition in elsewhere.values():
            continue
        shown[definition] = f"{module}.{name}"
        lines += [f"::: {definition}", "    options:", f"      heading: {module}.{name}"]
        lines += [f"      toc_label: {name}", ""]
    return "\n".join(lines)


def _tree(module: str) -> ast.Module:
    path = ROOT / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def _summary(module: str) -> str:
    """The first paragraph of a module's docstring."""
    return " ".join((ast.get_docstring(_tree(module)) or "").partition("\n\n")[0].split())


def _definition(dotted: str) -> str:
    """Where a name is defined, seen through the faces that it comes by."""
    home, _, name = dotted.rpartition(".")
    return public_names(home)[name] if (ROOT / home.replace(".", "/")).is_dir() else dotted


def _is_module(dotted: str) -> bool:
    path = ROOT / dotted.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()
