"""How closed forms are compiled: by options that suit them, where this version of XLA knows them."""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import jax

from tradeoff._records import is_concrete

Options = dict[str, Any]
WIDE: Options = {"xla_cpu_prefer_vector_width": 512}
"""The widest vectors of a processor, where XLA fills half of them unless told: sums of logarithms take up to 1.7 times as long so."""
LEAN: Options = {"xla_cpu_use_fusion_emitters": False}
"""XLA's older code generator: programs of many small steps run as fast and compile in two thirds of the time."""
BRIEF: Options = LEAN | {"xla_backend_optimization_level": 1, "xla_cpu_parallel_codegen_split_count": 4}
"""For programs whose time goes to products and eigendecompositions: they run as fast and compile in half to two thirds of the time."""


def compiled(options: Options, **static: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.jit` by some compiler options, which a function has where it is called with values.

    Inside another transformation it becomes part of that program, which is compiled as its own `jax.jit` says.

    Args:
        options: of the compiler.
        static: which arguments are static, as `jax.jit` is told.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        part, whole = jax.jit(function, **static), jax.jit(function, **static, compiler_options=options)

        @wraps(function)
        def call(*args: Any, **more: Any) -> Any:
            nonlocal whole
            # Only whole programs may have options. One that is being traced may close over values, but makes tracers of them.
            if not is_concrete(args, more, jax.lax.stop_gradient(0.0)):
                return part(*args, **more)
            try:
                return whole(*args, **more)
            except jax.errors.JaxRuntimeError:
                known = understood(options)  # asked only now, since asking compiles
                if known == options:
                    raise
                whole = jax.jit(function, **static, compiler_options=known)
                return whole(*args, **more)

        return call

    return decorate


def understood(options: Options) -> Options:
    """Those of some compiler options that this version of XLA knows; they change how long things take, and last bits."""
    some = tuple(options.items())
    return (
        options if _are_understood(some) else {name: value for name, value in some if _are_understood(((name, value),))}
    )


@cache
def _are_understood(options: tuple[tuple[str, Any], ...]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=dict(options))(0.0)
    except jax.errors.JaxRuntimeError:
        return False
    return True
