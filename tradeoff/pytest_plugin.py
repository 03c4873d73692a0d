"""Collect claims as test items: a theorem object in a test module is a test, verified on `--theorem-instances` instances.

Installed with the package and found by pytest on its own. It costs nothing until a test module has imported the theorems.
"""

import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tradeoff.theorems import Theorem


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--theorem-instances`."""
    parser.getgroup("tradeoff").addoption(
        "--theorem-instances",
        type=int,
        default=1_000,
        metavar="N",
        help="random instances of each theorem (default 1000)",
    )


def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, obj: Any) -> Any:
    """Turn a theorem that a test module defines into a test item."""
    claims = sys.modules.get("tradeoff.theorems.claim")
    if claims is None or not isinstance(obj, claims.Theorem):
        return None
    return TheoremItem.from_parent(collector, name=obj.name, claim=obj)


class TheoremItem(pytest.Item):
    """One claim, verified."""

    def __init__(self, *, claim: "Theorem", **rest: Any) -> None:
        super().__init__(**rest)
        self.claim = claim

    def runtest(self) -> None:
        """Verify the claim."""
        import jax

        from tradeoff.theorems import verify

        verdict = verify(self.claim, jax.random.key(0), int(self.config.getoption("--theorem-instances") or 0))
        if not verdict.holds:
            raise ClaimFailedError(verdict)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the verdict and the instance instead of a traceback."""
        if isinstance(excinfo.value, ClaimFailedError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Where the claim stands."""
        code = self.claim.sides.__code__
        return self.path, code.co_firstlineno - 1, f"theorem {self.claim.name}"


class ClaimFailedError(AssertionError):
    """A claim that failed, with its verdict."""

    def __init__(self, verdict: Any) -> None:
        from tradeoff.theorems.falsification import describe

        super().__init__(f"{verdict}\nat\n{describe(verdict.worst_instance)}")
