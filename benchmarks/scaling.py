"""How cost grows: `python -m benchmarks.scaling` fits power laws of time and memory, and holds kernels to what the machine can do.

A law is a straight line through the logarithms of five or more sizes; its interval is Student's, at 95 %. The fraction of
the machine that a kernel reaches is the least time that its traffic, products or transcendentals would take at rates
measured in the same run, over the time that it takes. Counted is what the mathematics needs, not what the program does.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import torch
import transformers

from benchmarks.machine import BUSY, THREADS, environment, peak_megabytes, pin, watch_others
from benchmarks.protocol import SCHEMA, save
from benchmarks.scoring import Words
from tradeoff import divergences, loss_constraint
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.rows import Row, token_log_probabilities
from tradeoff.dynamics import quadratic_flow
from tradeoff.dynamics.coordinates import Diagonal
from tradeoff.dynamics.propagator import coordinates_for, degree_for
from tradeoff.problems import Quadratic
from tradeoff.worlds import DataLaw, World

CONTEXTS, RESPONSES, PENALTIES = 2048, 16, 64
LANES, INSTANTS = 64, 33
EIGEN_FLOPS = 9
"""Of one symmetric eigendecomposition with vectors, in multiples of d³ (Golub and Van Loan, Matrix Computations, 8.3)."""
KL_ROWS = 64
SCORING = "scoring an answer"
LLAMA: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
CONFIDENCE = 0.95
SECONDS, MOST = 1.0, 7
"""A size is timed until so many seconds or calls are spent."""
LEAST_MEGABYTES = 1.0
"""Less than this is not told from the noise of a process's memory; no law is fitted to it."""
WEIGHTS, TOKENS, MILLION = 7e9, 32, 1_000_000
"""Of the model and the world that are projected to: weights, tokens of an answer, contexts."""


class Work(NamedTuple):
    """What a kernel needs: bytes through memory, multiplications and additions in products, exponentials or logarithms."""

    bytes: float
    flops: float
    transcendentals: float
    precision: str


class Kernel(NamedTuple):
    """A kernel and the size that is varied; `make` gives its run, and its work where it is held to the machine."""

    name: str
    against: str
    fixed: str
    sizes: Sequence[int]
    make: Callable[[int], tuple[Callable[[], Any], Work | None]]


class Law(NamedTuple):
    r"""$y=e^{a}x^{b}$ by least squares in logarithms."""

    exponent: float
    lower: float
    upper: float
    offset: float
    spread: float
    mean: float
    square: float
    count: int

    def at(self, size: float) -> tuple[float, float, float]:
        """The value at a size, and both ends of the interval for a new measurement there."""
        x = math.log(size)
        half = _quantile(self.count) * self.spread * math.sqrt(1 + 1 / self.count + (x - self.mean) ** 2 / self.square)
        middle = self.offset + self.exponent * x
        return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def power_law(sizes: Sequence[float], values: Sequence[float]) -> Law:
    """The power law through some points, at least three.

    Example:
        >>> law = power_law([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0])
        >>> round(law.exponent, 6), round(law.at(16)[0], 6)
        (2.0, 768.0)
    """
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(values, float))
    square = float(np.sum((x - x.mean()) ** 2))
    exponent = float(np.sum((x - x.mean()) * (y - y.mean())) / square)
    offset = float(y.mean() - exponent * x.mean())
    spread = float(np.sqrt(np.sum((y - offset - exponent * x) ** 2) / (len(x) - 2)))
    half = _quantile(len(x)) * spread / math.sqrt(square)
    return Law(exponent, exponent - half, exponent + half, offset, spread, float(x.mean()), square, len(x))


def _quantile(count: int) -> float:
    return float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 2))


# --- the kernels --------------------------------------------------------------------------------------------------


def _world(contexts: int, responses: int) -> World:
    draw = np.random.default_rng(0)
    laws = []
    for _ in range(2):
        p, P = draw.gamma(1.0, size=contexts), draw.gamma(1.0, size=(contexts, responses))
        laws.append(DataLaw(p / p.sum(), P / P.sum(axis=1, keepdims=True)))
    return World(*laws)


def _case_one(contexts: int, responses: int, penalties: int) -> tuple[Callable[[], Any], Work]:
    world, lams = _world(contexts, responses), np.geomspace(0.01, 100, penalties)
    cells = contexts * responses
    # A logarithm for every response in either gap; both tables are read once.
    work = Work(2 * 8 * cells, 0, 2 * cells * penalties, "float64")
    return lambda: jax.block_until_ready(loss_constraint.gaps(world, lams)), work


def _flow(dimension: int) -> tuple[Callable[[], Any], Work | None]:
    draw = np.random.default_rng(0)
    turns = [np.linalg.qr(draw.normal(size=(dimension, dimension)))[0] for _ in range(2)]
    H_f, H_s = (U @ np.diag(draw.uniform(0.1, 3, dimension)) @ U.T for U in turns)
    quad = Quadratic((H_f + H_f.T) / 2, draw.normal(size=dimension), (H_s + H_s.T) / 2, np.zeros(dimension))
    lams, times = np.geomspace(0.1, 10, LANES), np.linspace(0.0, 10.0, INSTANTS)
    chosen = degree_for(quad, lams, times)
    flops = None
    if chosen is not None:
        terms, product = chosen[0], 2 * LANES * dimension**2
        # A product with a d x d matrix for each term, and its share of every instant in the series.
        flops = terms * product + 2 * LANES * INSTANTS * dimension * terms
        if isinstance(coordinates_for(quad, LANES, INSTANTS, terms, states=False), Diagonal):
            flops += EIGEN_FLOPS * dimension**3
        else:  # products with either Hessian
            flops += (terms + 2 * INSTANTS) * product
    work = None if flops is None else Work(2 * 8 * dimension**2, flops, 0, "float64")
    return lambda: jax.block_until_ready(quadratic_flow(quad, lams, times).gaps), work


def _kl(vocabulary: int) -> tuple[Callable[[], Any], Work]:
    draw = np.random.default_rng(0)
    a = jnp.asarray(draw.normal(size=(KL_ROWS, vocabulary)), jnp.float32)
    b = a + jnp.asarray(0.01 * draw.normal(size=(KL_ROWS, vocabulary)), jnp.float32)
    entries = KL_ROWS * vocabulary
    return lambda: jax.block_until_ready(divergences.kl_logits(a, b)), Work(2 * 4 * entries, 0, 2 * entries, "float32")


def _scoring(length: int) -> tuple[Callable[[], Any], Work]:
    torch.manual_seed(0)
    model = (
        transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**LLAMA)).eval().requires_grad_(False)
    )
    one = Checkpoint("llama", model, Words(), {})
    tokens = np.random.default_rng(0).integers(LLAMA["vocab_size"], size=length + 1).tolist()
    rows = [Row((tokens[0],), tuple(tokens[1:]))]
    weights = sum(p.numel() for p in model.parameters())
    # Every weight once for a token, the tied head's too; attention to half of the tokens, scores and values.
    attention = 2 * length**2 * LLAMA["hidden_size"] * LLAMA["num_hidden_layers"]
    work = Work(4 * weights, 2 * weights * length + attention, length * LLAMA["vocab_size"], "float32")
    return lambda: token_log_probabilities(one, rows), work


KERNELS = (
    Kernel(
        "Case I gaps",
        "contexts",
        f"{RESPONSES} responses, {PENALTIES} penalties",
        (1024, 2048, 4096, 8192, 16384, 32768),
        lambda n: _case_one(n, RESPONSES, PENALTIES),
    ),
    Kernel(
        "Case I gaps",
        "responses",
        f"{CONTEXTS} contexts, {PENALTIES} penalties",
        (8, 16, 32, 64, 128, 256),
        lambda n: _case_one(CONTEXTS, n, PENALTIES),
    ),
    Kernel(
        "Case I gaps",
        "penalties",
        f"{CONTEXTS} contexts, {RESPONSES} responses",
        (32, 64, 128, 256, 512, 1024),
        lambda n: _case_one(CONTEXTS, RESPONSES, n),
    ),
    Kernel("quadratic flow", "dimension", f"{LANES} penalties, {INSTANTS} times", (40, 80, 160, 320, 640), _flow),
    Kernel("KL of logits", "vocabulary", f"{KL_ROWS} rows", (4096, 8192, 16384, 32768, 65536, 131072), _kl),
    Kernel(
        SCORING,
        "tokens",
        f"a Llama of {LLAMA['num_hidden_layers']} layers of {LLAMA['hidden_size']}, vocabulary {LLAMA['vocab_size']}",
        (128, 256, 512, 1024, 2048),
        _scoring,
    ),
)


# --- measuring ----------------------------------------------------------------------------------------------------


def least_seconds(run: Callable[[], Any]) -> float:
    """The least time of some calls."""
    found: list[float] = []
    while len(found) < MOST and sum(found) < SECONDS:
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)


def limits() -> dict[str, float]:
    """What the machine can do, per second: bytes read, products by number format, exponentials and logarithms."""
    long = jnp.ones(2**26, jnp.float32)
    found = {"bytes": long.nbytes / _rate(jax.jit(jnp.sum), long)}
    for name, function in (("float32", jnp.exp), ("float64", jnp.log)):
        side, x = 2048, jnp.linspace(0.5, 1.5, 2**22, dtype=name)
        square = jnp.ones((side, side), name)
        in_torch = torch.ones(side, side, dtype=getattr(torch, name))
        least = min(_rate(jax.jit(jnp.matmul), square, square), _rate(torch.matmul, in_torch, in_torch))
        found[f"flops {name}"] = 2 * side**3 / least
        found[f"transcendentals {name}"] = x.size / _rate(jax.jit(_summed(function)), x)
    return found


def _summed(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: jnp.sum(function(x))


def _rate(function: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of a call after the first."""

    def run() -> None:
        jax.block_until_ready(function(*arguments))

    run()
    return least_seconds(run)


def measured(kernel: Kernel, rates: dict[str, float]) -> tuple[dict[str, Any], dict[str, Any] | None, Law]:
    """A kernel's laws, what it reaches of the machine at its largest size, and its law of time."""
    seconds, megabytes, work = [], [], None
    for size in kernel.sizes:
        run, work = kernel.make(size)
        run()
        megabytes.append(peak_megabytes(run)[1])
        seconds.append(least_seconds(run))
    law = power_law(kernel.sizes, seconds)
    seen = [(n, m) for n, m in zip(kernel.sizes, megabytes, strict=True) if m is not None and m >= LEAST_MEGABYTES]
    memory = _interval(power_law(*zip(*seen, strict=True))) if len(seen) >= 4 else None
    found = {
        "kernel": kernel.name,
        "against": kernel.against,
        "fixed": kernel.fixed,
        "sizes": list(kernel.sizes),
        "seconds": seconds,
        "megabytes": megabytes,
        "time": _interval(law),
        "memory": memory,
    }
    return found, None if work is None else _roofline(kernel, work, seconds[-1], rates), law


def _interval(law: Law) -> dict[str, float]:
    return {"exponent": law.exponent, "lower": law.lower, "upper": law.upper}


def _roofline(kernel: Kernel, work: Work, seconds: float, rates: dict[str, float]) -> dict[str, Any]:
    floors = {
        "bytes": work.bytes / rates["bytes"],
        "flops": work.flops / rates[f"flops {work.precision}"],
        "transcendentals": work.transcendentals / rates[f"transcendentals {work.precision}"],
    }
    bound = max(floors, key=lambda name: floors[name])
    return {
        "kernel": kernel.name,
        "at": f"{kernel.sizes[-1]} {kernel.against}",
        "seconds": seconds,
        "bytes": work.bytes,
        "flops": work.flops,
        "transcendentals": work.transcendentals,
        "bound": bound,
        "fraction": floors[bound] / seconds,
    }


def projections(contexts: Law, fraction: float, rates: dict[str, float], memory: float) -> list[dict[str, Any]]:
    """A world of a million contexts, and a model of seven billion weights that scores it.

    Args:
        contexts: the law of time of Case I against contexts.
        fraction: of the machine's products that scoring reaches.
        rates: of `limits`.
        memory: bytes that the machine has.
    """
    tables = 2 * 8 * RESPONSES * MILLION
    taken, lower, upper = contexts.at(MILLION)
    tokens = MILLION * RESPONSES * TOKENS
    scoring = 2 * WEIGHTS * tokens / (fraction * rates["flops float32"])
    most = memory / (2 * 8 * RESPONSES)
    patience = most * contexts.at(most)[0] / most
    return [
        {
            "what": f"Case I of {MILLION:,} contexts, {RESPONSES} responses, {PENALTIES} penalties",
            "seconds": taken,
            "lower": lower,
            "upper": upper,
            "bytes": tables,
            "breaks": f"nothing; the two tables fill the memory at {most:,.0f} contexts, which would take {patience:,.0f} s",
        },
        {
            "what": f"the same world scored by a model of {WEIGHTS:.0e} weights in float32, {TOKENS} tokens an answer",
            "seconds": scoring,
            "lower": None,
            "upper": None,
            "bytes": 4 * WEIGHTS,
            "breaks": f"memory: the weights need {4 * WEIGHTS / memory:.1f} times what there is"
            if memory < 4 * WEIGHTS
            else f"time: {scoring / 86400:,.0f} days",
        },
    ]


def measure() -> dict[str, Any]:
    """Everything, as JSON values of `benchmarks/result-schema.json`."""
    began = time.perf_counter()
    torch.set_num_threads(THREADS)
    with watch_others() as others:
        rates = limits()
        found = [measured(kernel, rates) for kernel in KERNELS]
    memory = float(Path("/proc/meminfo").read_text().split()[1]) * 1024 if Path("/proc/meminfo").exists() else None
    rooflines = {roof["kernel"]: roof for _, roof, _ in found if roof is not None}
    reached = rooflines[SCORING]["fraction"]
    return {
        "schema": SCHEMA,
        "benchmark": "scaling",
        "title": "How cost grows with the size of the question",
        "limits": rates,
        "memory": memory,
        "laws": [law for law, _, _ in found],
        "rooflines": list(rooflines.values()),
        "projections": [] if memory is None else projections(found[0][2], reached, rates, memory),
        "others_busy": others.busy,
        "under_load": None if others.busy is None else others.busy > BUSY,
        "environment": environment(),
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    """Measure, and write scaling.json beside the results of the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="Measure how cost grows.")
    parser.add_argument("--out", type=Path, default=Path("reproduced/benchmarks"), help="the folder of the results")
    options = parser.parse_args()
    pin()
    result = measure()
    print(save(result, options.out), f"{result['seconds']:.0f} s")


if __name__ == "__main__":
    main()
