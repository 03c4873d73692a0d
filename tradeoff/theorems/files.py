"""Claims in a user's own file: found, and refused with the line when they cannot be."""

import ast
import importlib.util
import sys
from pathlib import Path

from tradeoff.theorems.claim import Theorem
from tradeoff.theorems.registry import found_in


def load(path: Path | str) -> tuple[Theorem, ...]:
    """The claims that a Python file defines with `@tradeoff.theorem`, in order.

    The file is run, as any script of yours would be.

    Args:
        path: a Python file.

    Returns:
        Its claims.

    Raises:
        ValueError: when the file is missing, is not Python, defines no claim, or gives one name to two; the message
            says where.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "my_bounds.py"
        ...     _ = file.write_text("x = 1")
        ...     try:
        ...         load(file)
        ...     except ValueError as error:
        ...         print("defines no theorem" in str(error))
        True
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a Python file that defines claims with @tradeoff.theorem(...).")
    try:
        tree = ast.parse(path.read_text(), str(path))
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(
            f"{path}{line} is not Python ({error}); give a file that defines claims with @tradeoff.theorem(...)."
        ) from error
    _refuse_repeats(path, tree)
    spec = importlib.util.spec_from_file_location(f"tradeoff_claims_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None  # a .py file always has one
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    claims = found_in(module)
    if not claims:
        raise ValueError(f"{path} defines no theorem; decorate a function of an instance with @tradeoff.theorem(...).")
    return claims


def _refuse_repeats(path: Path, tree: ast.Module) -> None:
    """Two claims of one name are an error even when the second hides the first."""
    lines: dict[str, int] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if not (isinstance(mark, ast.Call) and ast.unparse(mark.func).split(".")[-1] == "theorem" and mark.args):
                continue
            name = mark.args[0]
            if isinstance(name, ast.Constant) and lines.setdefault(str(name.value), mark.lineno) != mark.lineno:
                raise ValueError(
                    f"{path}, line {mark.lineno} registers a second theorem named {name.value!r} "
                    f"(the first is on line {lines[str(name.value)]}); names must be unique."
                )
