"""What README and the docs show is so: code runs, commands are commands, links lead somewhere, no public name is left out."""

import ast
import doctest
import importlib
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import jax
import pytest
import yaml

import tradeoff as to
from tradeoff import cli, cli_lm, documents

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("how-to/*.md"))]
COMMANDS = (cli.Verify, cli.Frontier, cli.Strategies, cli.Document, cli.Explore, cli.Check)
LM_COMMANDS = (cli_lm.Measure, cli_lm.Preflight, cli_lm.Finetune)


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page in some languages, as (language, text)."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, textwrap.dedent(text)) for _, language, text in found if language in languages]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python", "pycon")], ids=named)
def test_every_block_of_python_runs_and_says_what_is_shown(page, tmp_path, monkeypatch):
    """The blocks of a page are one program; of a session in `pycon` what it answers is compared too."""
    monkeypatch.chdir(tmp_path)
    program = types.ModuleType("shown")
    for language, block in blocks(page, "python", "pycon"):
        if language == "python":
            exec(compile(block, str(page), "exec"), program.__dict__)
        else:
            failed, tried = run_session(block, program.__dict__)
            assert tried
            assert not failed


def run_session(text: str, names: dict) -> tuple[int, int]:
    session = doctest.DocTestParser().get_doctest(text, names, "session", None, 0)
    found = doctest.DocTestRunner(verbose=False).run(session, clear_globs=False)
    names.update(session.globs)
    return found.failed, found.attempted


def test_a_session_that_answers_something_else_is_found():
    assert run_session(">>> 1 + 1\n3\n", {}) == (1, 1)


def commands() -> list[str]:
    """Every line of a shell block, lines that go on joined, that begins with `tradeoff`."""
    shown = (block.replace("\\\n", " ") for page in PAGES for _, block in blocks(page, "bash", ""))
    return sorted({line for block in shown for line in block.splitlines() if line.startswith("tradeoff ")})


@pytest.fixture
def parse(monkeypatch):
    """The exit code of a command line whose commands do nothing."""
    for command in (*COMMANDS, *LM_COMMANDS):
        monkeypatch.setattr(command, "run", lambda self: 0)

    def parsed(line: str) -> object:
        monkeypatch.setattr(sys, "argv", shlex.split(line, comments=True))
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code

    return parsed


def test_every_command_of_the_pages_is_one(parse, capsys):
    lines = commands()
    assert len(lines) > 20
    assert [line for line in lines if parse(line) != 0] == []
    assert [parse(line) for line in ("tradeoff verify --fasify", "tradeoff lm mesure world.json")] == [2, 2]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_somewhere(page):
    generated = tuple(os.path.relpath(DOCS / name, page.parent) + "/" for name in ("theorems", "reference"))
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (link.startswith(generated) or (page.parent / link).exists())] == []


def test_every_test_that_a_page_cites_is_there():
    cited = [one for page in PAGES for one in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())]
    assert len(cited) > 30
    assert [one for one in cited if not has_test(*one)] == []
    assert not has_test("tests/test_docs.py", "test_that_is_not")


def has_test(path: str, name: str) -> bool:
    tree = ast.parse((ROOT / path).read_text())
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


def test_every_name_that_a_page_cites_is_there():
    cited = {name for page in PAGES for name in re.findall(r"`(?:to|tradeoff)\.([a-z][\w.]+)", page.read_text())}
    assert len(cited) > 20
    assert [name for name in sorted(cited) if not is_there(name)] == []
    assert not is_there("frontier.exat")


def is_there(name: str) -> bool:
    try:
        pkgutil.resolve_name(f"tradeoff.{name}")
    except (ImportError, AttributeError):
        return False
    return True


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(reference):
    return reference.pages()


def public(module: types.ModuleType) -> dict[str, object]:
    """What a module hands out at run time: of a face all but modules, of a file what it defines."""
    found = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    if hasattr(module, "__path__"):
        ours = {name: one for name, one in found.items() if not isinstance(one, types.ModuleType)}
        return {name: one for name, one in ours.items() if name != "Any"}
    defined = {name: one for name, one in found.items() if getattr(one, "__module__", None) == module.__name__}
    left = re.findall(r"^([A-Z][A-Z_0-9, ]*?)(?:: .*)? = ", Path(module.__file__).read_text(), re.MULTILINE)
    assigned = [name for names in left for name in names.split(", ")]
    return {name: one for name, one in defined.items() if callable(one)} | {name: found[name] for name in assigned}


def inner(module: types.ModuleType) -> list[types.ModuleType]:
    """The modules that a face hands out, and those that these hand out."""
    names = [name for name in dir(module) if not name.startswith("_")]
    # A face hands out what it names; that Python also binds the modules it has loaded says nothing.
    handed = Path(module.__file__).read_text() if hasattr(module, "__path__") else ""
    rooms = [getattr(module, name) for name in names if re.search(rf'import {name} as {name}\b|"{name}"', handed)]
    rooms = [room for room in rooms if isinstance(room, types.ModuleType) and room.__name__.startswith("tradeoff.")]
    return rooms + [each for room in rooms for each in inner(room)]


def left_out(module: str, names: dict[str, object], text: str) -> list[str]:
    """The names without a heading, or whose definition is not the one below their heading."""
    sections = dict(re.findall(r"^::: (\S+)\n    options:\n      heading: (\S+)$", text, re.MULTILINE))
    shown = {heading: definition for definition, heading in sections.items()}
    shown |= dict(re.findall(r"^\* `(\S+)`: see \[`\S+`\]\[(\S+)\]$", text, re.MULTILINE))
    return [name for name, one in names.items() if not same(shown.get(f"{module}.{name}"), one)]


def same(definition: str | None, one: object) -> bool:
    if definition is None:
        return False
    home, _, name = definition.rpartition(".")
    return getattr(importlib.import_module(home), name) is one


def test_the_reference_has_every_public_name(reference, pages):
    rooms = {
        room.__name__: room for room in [to, *inner(to), *(importlib.import_module(name) for name in reference.PAGES)]
    }
    assert set(rooms) == set(reference.PAGES)
    for name, room in rooms.items():
        names = {key: one for key, one in public(room).items() if not isinstance(one, types.ModuleType)}
        assert names
        assert left_out(name, names, pages[reference.file_of(name)]) == []


def test_a_name_that_is_left_out_or_mixed_up_is_found(pages):
    names = {"gaps": to.loss_constraint.gaps, "value": to.loss_constraint.value}
    text = pages["loss_constraint.md"]
    assert left_out("tradeoff.loss_constraint", names, text.replace("heading: tradeoff.loss_constraint.gaps", "")) == [
        "gaps"
    ]
    swapped = text.replace("::: tradeoff.loss_constraint.value\n", "::: tradeoff.loss_constraint.proxy_gap\n")
    assert left_out("tradeoff.loss_constraint", names, swapped) == ["value"]


def test_every_command_is_in_the_reference(reference):
    shown = set(reference.COMMANDS + reference.LM_COMMANDS)
    assert shown == {one.__name__.lower() for one in COMMANDS} | {f"lm {one.__name__.lower()}" for one in LM_COMMANDS}


def test_the_citation_names_this_version_and_both_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["cff-version"], cited["version"], cited["license"]) == ("1.2.0", to.__version__, "Apache-2.0")
    assert {one["identifiers"][0]["value"] for one in cited["references"]} == {"arXiv:2503.20807", "arXiv:2508.12531"}
    assert all(one["authors"] and one["title"] for one in [cited, *cited["references"]])
    assert "Apache License\n                           Version 2.0" in (ROOT / "LICENSE").read_text()


def test_a_formula_is_set_without_a_network_and_an_unknown_command_is_said(monkeypatch, caplog):
    monkeypatch.syspath_prepend(DOCS)
    hooks = importlib.import_module("hooks")
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="page.md"))
    shown = hooks.on_page_content(r'so <span class="arithmatex">\(\arg\min_x f&lt;\|x\|\)</span>.', page)
    assert shown.startswith("so <math")
    assert "\\" not in shown
    assert not caplog.records
    hooks.on_page_content(r'<div class="arithmatex">\[\nonsense x\]</div>', page)
    assert [record.getMessage() for record in caplog.records] == [
        r"page.md has a formula that cannot be set: \nonsense x"
    ]


def test_the_site_builds(tmp_path):
    """Strictly, with the page of one theorem for all of them; `make docs` writes every one."""
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("theorems", "__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for name in ("tradeoff", "figures", "notebooks", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"):
        (tmp_path / name).symlink_to(ROOT / name)
    documents.write_pages([to.theorems.get("T4a")], tmp_path / "docs" / "theorems", jax.random.key(0))
    words = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for place in (
        "index.html",
        "theorems/T4a.html",
        "notebooks/1-tour.html",
        "figures/gallery/e1_gap_against_penalty.png",
    ):
        assert (tmp_path / "site" / place).is_file()
