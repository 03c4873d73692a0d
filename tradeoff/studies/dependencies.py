"""Which source files a result depends on: what its module imports, and what that imports, as far as the sources are ours."""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

import tradeoff

PACKAGE = Path(tradeoff.__file__).parent


def sources(*files: Path) -> tuple[Path, ...]:
    """The Python files that files depend on by their imports, themselves included.

    Followed are imports of `tradeoff` and of modules that lie beside the files. A name that a package only hands on is
    followed to where it is defined, so that a change elsewhere in the package changes nothing here; a module that loads others
    by names it makes at run time depends on all of its folder.

    Args:
        *files: Python files.

    Returns:
        Their paths, in order.

    Example:
        >>> from tradeoff.studies.dependencies import PACKAGE
        >>> found = sources(PACKAGE / "loss_constraint.py")
        >>> PACKAGE / "gaps.py" in found, PACKAGE / "cli.py" in found
        (True, False)
    """
    roots = tuple(dict.fromkeys([*(_root(file.resolve()) for file in files), PACKAGE.parent]))
    found: set[Path] = set()
    waiting = [file.resolve() for file in files]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += _imported(_Search(roots), file, file.read_text(encoding="utf-8"))
    # A package's first file runs before any of its modules; what it imports beside is not what they depend on.
    faces = {parent / "__init__.py" for file in found for parent in file.parents if parent not in (*roots, Path("/"))}
    return tuple(sorted(found | {face for face in faces if face.is_file()}))


@dataclass(frozen=True)
class _Search:
    """Where modules are looked for."""

    roots: tuple[Path, ...]

    def file(self, module: str) -> Path | None:
        """The file of a module of ours, or `None`."""
        for root in self.roots:
            if root == PACKAGE.parent and not f"{module}.".startswith(f"{PACKAGE.name}."):
                continue
            place = root.joinpath(*module.split("."))
            for candidate in (place.with_suffix(".py"), place / "__init__.py"):
                if candidate.is_file():
                    return candidate
        return None

    def named(self, module: str, name: str) -> tuple[Path, ...]:
        """The files behind `from module import name`."""
        if inside := self.file(f"{module}.{name}"):
            return (inside,)
        file = self.file(module)
        if file is None or file.name != "__init__.py":
            return () if file is None else (file,)
        handed_on, defined = _face(file.read_text(encoding="utf-8"))
        if name in handed_on and self.file(handed_on[name][0]) not in (None, file):
            return self.named(*handed_on[name])
        found_at_run_time = "__getattr__" in defined and name not in defined and not name.startswith("__")
        return tuple(sorted(file.parent.rglob("*.py"))) if found_at_run_time else (file,)


@functools.cache
def _imported(search: _Search, file: Path, text: str) -> tuple[Path, ...]:
    """The files that one file imports; its text is given, so that what was found for another text is not taken for it."""
    nodes = list(ast.walk(ast.parse(text)))
    files: list[Path] = []
    packages: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                imported = search.file(alias.name)
                called = alias.asname or alias.name
                if imported is not None and imported.name == "__init__.py" and "." not in called:
                    packages[called] = alias.name
                elif imported is not None:
                    files.append(imported)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, file, search)
            for alias in node.names:
                files += search.named(module, alias.name)
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in packages:
            files += search.named(packages[node.value.id], node.attr)
        if isinstance(node, ast.Attribute) and node.attr == "import_module" and file.name != "__init__.py":
            files += file.parent.rglob("*.py")
    return tuple(dict.fromkeys(files))


@functools.cache
def _face(text: str) -> tuple[dict[str, tuple[str, str]], frozenset[str]]:
    """What a package's first file hands on, as module and name there by name here, and the names it defines itself."""
    tree, handed_on = ast.parse(text), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            handed_on |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
    functions = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return handed_on, frozenset(functions | {target.id for target in assigned if isinstance(target, ast.Name)})


def _absolute(node: ast.ImportFrom, file: Path, search: _Search) -> str:
    """The module of `from module import ...`, relative ones included."""
    if not node.level:
        return node.module or ""
    folder = file.parents[node.level - 1]
    root = next(root for root in search.roots if folder.is_relative_to(root))
    return ".".join([*folder.relative_to(root).parts, *([node.module] if node.module else [])])


def _root(file: Path) -> Path:
    """The folder from which a file's package is imported."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder
