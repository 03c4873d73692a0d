"""Gradients taken elsewhere: the loss is descended as it is at perturbed hidden states or perturbed weights."""

from typing import Any

from jaxtyping import Array

from tradeoff._records import record, static
from tradeoff.strategies._named import Weights, each, less, moved, namespace, norm, unit
from tradeoff.strategies._probes import ATTENTION, PROBE, held, is_probe, kept
from tradeoff.strategies._settings import at_least_zero
from tradeoff.strategies.losses import HARMFUL
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy


@record
class Vaccine(Strategy):
    r"""The gradient where the hidden states have moved by ρ in the direction that raises the loss most.

    $$ g=\nabla_\theta L(\theta,e),\qquad e=\rho\,\frac{\nabla_eL(\theta,0)}{\|\nabla_eL(\theta,0)\|}, $$

    e added to the outputs of the attention blocks: one norm for all layers, tokens and examples together, and e held fixed
    when the gradient in θ is taken. With one probe for each hidden state of each layer (see `_probes`), of shape (X, width)
    on a toy, this is the published rule on a full batch. A checkpoint has them on the layers that are trained; responses to
    one prompt that begin alike share hidden states, and with them e, where the released code moves each example by itself.

    With `within=""` the weights themselves are perturbed, which is another method (sharpness-aware minimisation): on a pair
    of quadratics it descends $L+\rho\|\nabla L\|$ exactly. For the stage of alignment.

    Args:
        rho: ρ ≥ 0, the length of the perturbation in units of the hidden states, or of the weights.
        within: the arrays that are perturbed are those whose names begin with this; "probe/" is the published method, ""
            perturbs all weights and no probe.

    Unknown: what ρ corresponds to on weights; 2 is the released code's, for hidden states. Its guard of 1e-7 beside the norm
    is left out: a gradient of 0 has no direction and perturbs nothing.

    Source: [vaccine2024]; methods.md P3.
    """

    rho: float | Array = 2.0
    within: str = static(default=PROBE)

    kind = "perturb"
    source = "vaccine2024"

    def __post_init__(self) -> None:
        """Check the length."""
        at_least_zero(self, "rho", "the length of the perturbation")

    @property
    def probes(self) -> str:
        """The attention blocks' outputs, unless weights are perturbed."""
        return ATTENTION if self.within.startswith(PROBE) else ""

    def init(self, weights: Weights, engine: Engine) -> State:
        """Nothing to remember, but something to perturb."""
        _chosen(self, weights)
        return {}

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient at the perturbed hidden states, of everything but the probes."""
        names, first = _chosen(self, weights), inner(weights)
        still = namespace(first).zeros_like
        uphill = {name: slope if name in names else still(slope) for name, slope in first.items()}
        return held(inner(moved(weights, self.rho, unit(uphill))))

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """Whatever else is composed with it, no probe is trained."""
        return kept(moved, weights), state


@record
class TVaccine(Strategy):
    r"""Vaccine on a few layers at a time, drawn with probabilities proportional to their gradients on harmful data.

    Every `remeasure` steps the length of the harmful loss's gradient in each layer is taken, $p_l\propto\|\nabla_lL_h\|$; every
    `redraw` steps S layers are drawn by p one after the other without replacement, as a race: layer l arrives at time
    $-\log(u_l)/p_l$, u uniform, and the first S are drawn. Only they are perturbed, by ρ together, and the weights of the
    other layers stand still until the next draw. For the stage of alignment.

    A layer is an array that `within` names. With "probe/", as published, a probe `probe/h` is on the output of layer h (on a
    checkpoint, of its attention block), and the arrays `h`, `h/*` and `h.*` are its weights; arrays of no layer are always
    trained. With "" each array is a layer and is perturbed itself, which is another method: see `Vaccine`.

    Args:
        rho: ρ ≥ 0, the length of the perturbation.
        layers: S, how many layers at a time, at least 1.
        redraw: steps from one draw to the next, at least 1.
        remeasure: steps from one measurement of the probabilities to the next, at least 1.
        within: the layers are the arrays whose names begin with this.

    Unknown: what to do with fewer than S layers of gradient above 0, where the released code fails: those of 0 come last,
    each as likely as another. That code measures on one harmful example, this on the whole law.

    Source: [tvaccine2024]; methods.md P4. That the other layers stand still is in the released code.
    """

    rho: float | Array = 3.0
    layers: int = static(default=8)
    redraw: int = static(default=20)
    remeasure: int = static(default=200)
    within: str = static(default=PROBE)

    kind = "perturb"
    source = "tvaccine2024"
    needs = ("harmful data",)

    def __post_init__(self) -> None:
        """Check the settings."""
        at_least_zero(self, "rho", "the length of the perturbation")
        if min(self.layers, self.redraw, self.remeasure) < 1:
            raise ValueError(
                f"TVaccine was given layers={self.layers}, redraw={self.redraw}, remeasure={self.remeasure}; each must be at "
                "least 1."
            )

    @property
    def probes(self) -> str:
        """The attention blocks' outputs, unless weights are perturbed."""
        return ATTENTION if self.within.startswith(PROBE) else ""

    def init(self, weights: Weights, engine: Engine) -> State:
        """Nothing measured and nothing drawn: the first step does both."""
        names = _chosen(self, weights)
        if self.layers > len(names):
            raise ValueError(
                f"TVaccine was given layers={self.layers} and the model has {len(names)} to draw from "
                f"({', '.join(names)}); give at most that many."
            )
        nothing = 0 * _lengths(names, weights)
        return {"lengths": nothing, "drawn": nothing > 0}

    def refresh(self, state: State, weights: Weights, step: Any, engine: Engine) -> State:
        """The layers drawn anew when it is time, by probabilities measured anew when it is time."""
        names = _chosen(self, weights)
        lengths = engine.either(
            step % self.remeasure == 0,
            lambda: _lengths(names, engine.gradient(HARMFUL, weights)),
            lambda: state["lengths"],
        )
        drawn = engine.either(
            step % self.redraw == 0,
            lambda: _first(self.layers, lengths, engine.uniform("t-vaccine", step, tuple(lengths.shape))),
            lambda: state["drawn"],
        )
        return {"lengths": lengths, "drawn": drawn}

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient at the perturbed layers, in the weights of those layers and of none."""
        names, first, drawn = _chosen(self, weights), inner(weights), state["drawn"]
        xp = namespace(first)
        still = {name: xp.zeros_like(slope) for name, slope in first.items()}
        uphill = {name: xp.where(drawn[place], first[name], still[name]) for place, name in enumerate(names)}
        second = held(inner(moved(weights, self.rho, unit({**still, **uphill}))))
        return _of_drawn(names, drawn, second, still)

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """An optimiser that moves weights without a gradient moves those of no layer that stands still."""
        return _of_drawn(_chosen(self, weights), state["drawn"], kept(moved, weights), weights), state


@record
class Booster(Strategy):
    r"""The alignment gradient and a term that makes one step of harmful fine-tuning lower the harmful loss less.

    $$ g=\nabla L+\lambda\Big(\nabla h(\theta)-\nabla h\Big(\theta-\alpha\frac{\nabla h(\theta)}{\|\nabla h(\theta)\|}\Big)\Big). $$

    The bracket is that of the paper, in which the normalised step is not differentiated. For a quadratic harmful loss h it is
    $\alpha\nabla\|\nabla h\|$ exactly, so that $L+\lambda\alpha\|\nabla h\|$ is descended. For the stage of alignment.

    Args:
        lam: λ ≥ 0.
        alpha: α ≥ 0, the length of the harmful step.

    Unknown: nothing of the rule; no step is taken where ∇h is 0. λ = 5 and α = 0.1 are the released script's.

    Source: [booster2024]; methods.md P5.
    """

    lam: float | Array = 5.0
    alpha: float | Array = 0.1

    kind = "perturb"
    source = "booster2024"
    needs = ("harmful data",)

    def __post_init__(self) -> None:
        """Check weight and length."""
        at_least_zero(self, "lam", "the weight λ")
        at_least_zero(self, "alpha", "the length of the harmful step")

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient that is wrapped, and what a harmful step changes of the harmful gradient."""
        harm = engine.gradient(HARMFUL, weights)
        after = engine.gradient(HARMFUL, moved(weights, -self.alpha, unit(harm)))
        return moved(inner(weights), self.lam, less(harm, after))


@record
class Smoothed(Strategy):
    r"""The gradient of the loss smoothed over Gaussian weights, $\nabla E_zL(\theta+\sigma z)$, by draws of z.

    On a quadratic it is the plain gradient in expectation, and the smoothed loss is $L+\tfrac12\sigma^2\operatorname{tr}H$: what it
    penalises is curvature, so it changes where training ends only where curvature varies. `landscape.smoothed_floor` is the
    certificate that goes with it. For the stage of alignment, or before it.

    Args:
        sigma: σ ≥ 0, in units of the weights.
        samples: draws at each step, at least 1; their gradients are averaged.

    Unknown: draws per step and whether the noise is drawn anew at every step; one new draw, as the notes on the paper have
    it. σ = 0.01 is theirs for a model of 127 million parameters.

    Source: [basin2025]; methods.md P17.
    """

    sigma: float | Array = 0.01
    samples: int = static(default=1)

    kind = "perturb"
    source = "basin2025"

    def __post_init__(self) -> None:
        """Check noise and number of draws."""
        at_least_zero(self, "sigma", "the standard deviation σ")
        if self.samples < 1:
            raise ValueError(f"Smoothed was given samples={self.samples}; give at least 1.")

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The mean of the gradients at noisy weights."""
        draws = [engine.normal(f"smoothed {draw}", step, weights) for draw in range(self.samples)]
        return each(lambda *slopes: sum(slopes) / self.samples, *(inner(moved(weights, self.sigma, z)) for z in draws))


def _chosen(strategy: Vaccine | TVaccine, weights: Weights) -> list[str]:
    """The names of the arrays that are perturbed, in order: of a prefix, and no probe unless it asks for probes."""
    wanted = strategy.within
    names = sorted(n for n in weights if n.startswith(wanted) and (wanted.startswith(PROBE) or not is_probe(n)))
    if not names:
        raise ValueError(
            f"{type(strategy).__name__} perturbs the arrays whose names begin with {wanted!r}, and the model has none "
            f"({', '.join(sorted(weights))}). Give a model with probes on its hidden states, arrays named 'probe/...' that are "
            "0, or within='' to perturb the weights instead, which is another method."
        )
    return names


def _lengths(names: list[str], weights: Weights) -> Any:
    """The Euclidean lengths of some arrays, shape (L,)."""
    return namespace(weights).stack([norm({name: weights[name]}) for name in names])


def _first(layers: int, lengths: Any, uniforms: Any) -> Any:
    """Which layers arrive first in a race at rates in proportion to their lengths, shape (L,), in truth values."""
    xp = namespace({"": lengths})
    clock = xp.log(-xp.log(xp.astype(uniforms, lengths.dtype)))
    lead = xp.log(lengths + xp.finfo(lengths.dtype).smallest_normal) - clock
    return xp.sum(lead[None, :] > lead[:, None], axis=1) < layers


def _of_drawn(names: list[str], drawn: Any, weights: Weights, otherwise: Weights) -> Weights:
    """Arrays of the layers that are drawn and of no layer, and others in place of those of the rest."""
    xp = namespace(weights)
    places = {name: _place(name, names) for name in weights}
    return {
        name: array if places[name] is None else xp.where(drawn[places[name]], array, otherwise[name])
        for name, array in weights.items()
    }


def _place(name: str, layers: list[str]) -> int | None:
    """The place of the layer that an array is or belongs to, if any."""
    if name in layers:
        return layers.index(name)
    roots = [layer.removeprefix(PROBE) for layer in layers]
    return next((p for p, root in enumerate(roots) if name == root or name.startswith((f"{root}/", f"{root}."))), None)
