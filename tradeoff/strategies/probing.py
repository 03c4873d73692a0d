"""Safety-aware probing: hidden states are moved so that what would harm safety no longer helps the task."""

from typing import Any

from array_api_compat import array_namespace
from jaxtyping import Array

from tradeoff._records import record
from tradeoff.strategies._named import Weights, dot, each, less, mixed, moved, norm, ratio, unit, zeros
from tradeoff.strategies._probes import MLP, held, is_probe, kept, probes
from tradeoff.strategies._settings import at_least_zero
from tradeoff.strategies.losses import HARMFUL, SAFETY, TASK, Data, Loss, Weighted
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy

FIRST_MOMENT, SECOND_MOMENT, FLOOR = 0.9, 0.999, 1e-8
"""The defaults of AdamW, which the released code steps its probe by."""


@record
class Contrast(Loss):
    r"""$-E\log\sigma(\log\pi(y_s|x)-\log\pi(y_h|x))$ over pairs of a safe and a harmful answer to one prompt."""

    def value(self, data: Data, log_policy: Any) -> Any:
        """The mean over the pairs, nats; its infimum is 0."""
        xp, pairs, margin = self._pairs(data, log_policy)
        return xp.sum(pairs * xp.logaddexp(xp.zeros_like(margin), -margin))

    def cells(self, data: Data, log_policy: Any) -> Any:
        """Up with the safe answer, down with the harmful one, by the chance that the pair is ranked wrongly."""
        xp, pairs, margin = self._pairs(data, log_policy)
        wrong = pairs / (1 + xp.exp(margin))
        return xp.sum(wrong, axis=2) - xp.sum(wrong, axis=1)

    def _pairs(self, data: Data, log_policy: Any) -> tuple[Any, Any, Any]:
        """The chances of pairs and their margins, shape (X, Y, Y); margins of pairs that do not occur are 0."""
        xp = array_namespace(log_policy)
        p = xp.sum(data.harmful, axis=-1, keepdims=True)
        pairs = data.safety[:, :, None] * ratio(data.harmful, p + xp.zeros_like(data.harmful))[:, None, :]
        margin = log_policy[:, :, None] - log_policy[:, None, :]
        return xp, pairs, xp.where(pairs > 0, margin, xp.zeros_like(margin))


DIFFERENCE, CONTRAST = Weighted(((1.0, SAFETY), (-1.0, HARMFUL))), Contrast()


@record
class SAP(Strategy):
    r"""The task's gradient at hidden states moved so that a harmful step of the weights would raise the task's loss.

    $$ \hat g=\frac{\nabla L_\text{safe}}{\|\nabla L_\text{safe}\|},\qquad
       V=\beta\,\nabla_V\big(L_u(W+\varepsilon\hat g,V)-L_u(W,V)\big)\big|_{V=0},\qquad g=\nabla_WL_u(W,V). $$

    V are the probes: additive terms in hidden states, arrays named `probe/...` (see `_probes`); without them there is no such
    method. On a checkpoint they are biases on the outputs of the MLPs of all layers that are trained (the released code has
    two: of layers 3 and 9). Where the probe enters a quadratic linearly, $L_u=\tfrac12\|w+Cv-a\|_A^2$, the gradient is
    $A(w-a)+\beta\varepsilon ACC^\top A\hat g$: the extra term never points against $\nabla L_\text{safe}$, so that to first order
    safety is no worse than plainly fine-tuned, and it is blind to what is orthogonal to the range of AC.

    Args:
        eps: ε ≥ 0, the length of the harmful step, in units of the weights.
        beta: β ≥ 0, the step of the probe.
        loss: $L_\text{safe}$, lower when safer: the loss of the safe answers less that of the harmful ones, unless given.

    Unknown: the paper's own tables and ε (its code has 2e-5 times the length of the LoRA weights), and which of the two losses
    it means: the difference is a review's, the released code's is `CONTRAST`. β = 0.05 is a re-implementation's.

    Source: [sap2025]; methods.md 4.
    """

    eps: float | Array
    beta: float | Array = 0.05
    loss: Loss = DIFFERENCE

    kind = "perturb"
    source = "sap2025"
    needs = ("safety data", "harmful data", "probes on hidden states")
    probes = MLP  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        """Check the lengths."""
        at_least_zero(self, "eps", "the length of the harmful step")
        at_least_zero(self, "beta", "the step of the probe")

    def init(self, weights: Weights, engine: Engine) -> State:
        """Nothing to remember, but something to probe with."""
        _demand_probes(self, weights)
        return {}

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient of the weights with the probe in place."""
        harm = unit(held(engine.gradient(self.loss, weights)))
        raised = less(inner(moved(weights, self.eps, harm)), inner(weights))
        return held(inner({**weights, **moved(probes(weights), self.beta, probes(raised))}))

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """Whatever else is composed with it, no probe is trained."""
        return kept(moved, weights), state


@record
class SAPReleased(Strategy):
    r"""What the released code of safety-aware probing does, which is not its algorithm.

    The weights step along $\nabla_WL_u(W,V)$ with the probe V of the step before, 0 at the first. After it the probe is put to
    0 and makes one step of AdamW of its own up the slope of $L_u(W+\varepsilon\|W\|\hat g,V)-L_u(W,V)$, which like $\hat g$ was
    taken at the old V and the old W: each entry of the new probe is about `rate` with the sign of its recent slopes, however
    small they are. In `SAP` the probe is β times a slope at V = 0, of the same step.

    The slopes of the probe are of the task's loss itself: of a penalty or noise that is part of what is descended they know
    nothing. The weights are used without their last probe.

    Args:
        eps: ε ≥ 0, the length of the harmful step over that of the weights.
        rate: of the probe's AdamW, ≥ 0; 0 is none.
        loss: $L_\text{safe}$.

    Not copied: the code scores the answers at padding positions behind the prompt alone, without a shift to the next token,
    so that its safety gradient is not that of the loss it states; here it is. Unknown: whether the last probe belongs to the
    model; the code leaves it there when it validates.

    Source: [sap2025], released code; methods.md 4 (a) and (b).
    """

    eps: float | Array = 2e-5
    rate: float | Array = 0.05
    loss: Loss = CONTRAST

    kind = "perturb"
    source = "sap2025"
    needs = ("safety data", "harmful data", "probes on hidden states")
    probes = MLP  # pyright: ignore[reportAssignmentType]

    def __post_init__(self) -> None:
        """Check the lengths."""
        at_least_zero(self, "eps", "the length of the harmful step")
        at_least_zero(self, "rate", "the learning rate of the probe")

    def init(self, weights: Weights, engine: Engine) -> State:
        """No probe and no moments; of each moment, what its bias correction lacks of 1."""
        _demand_probes(self, weights)
        nothing = zeros(probes(weights))
        lacking = 1 + 0 * dot(weights, weights)
        return {"probe": nothing, "first": nothing, "second": nothing, "lacking": (lacking, lacking)}

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient of the weights with the last probe in place."""
        return held(inner({**weights, **state["probe"]}))

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """The weights as they moved, and the next probe: one step of AdamW from 0."""
        slope = self._slope({**weights, **state["probe"]}, engine)
        first = mixed(FIRST_MOMENT, state["first"], slope)
        second = mixed(SECOND_MOMENT, state["second"], each(lambda g: g**2, slope))
        lacking = (FIRST_MOMENT * state["lacking"][0], SECOND_MOMENT * state["lacking"][1])
        probe = each(
            lambda m, s: self.rate * (m / (1 - lacking[0])) / ((s / (1 - lacking[1])) ** 0.5 + FLOOR), first, second
        )
        return kept(moved, weights), {"probe": probe, "first": first, "second": second, "lacking": lacking}

    def _slope(self, at: Weights, engine: Engine) -> Weights:
        """What a harmful step changes of the task's gradient in the probe."""
        harm = unit(held(engine.gradient(self.loss, at)))
        size = norm({name: array for name, array in at.items() if not is_probe(name)})
        harmed = engine.gradient(TASK, moved(at, self.eps * size, harm))
        return probes(less(harmed, engine.gradient(TASK, at)))


def _demand_probes(strategy: SAP | SAPReleased, weights: Weights) -> None:
    if not probes(weights):
        raise ValueError(
            f"{type(strategy).__name__} moves hidden states, and the model exposes none ({', '.join(sorted(weights))}): it would be "
            "plain fine-tuning. Give a model with probes, arrays named 'probe/...' that are 0 and are added to its hidden "
            "states."
        )
