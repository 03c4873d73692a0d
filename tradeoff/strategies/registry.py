"""Every strategy by name, with the setting at which it does nothing: one line each, and the common tests find it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tradeoff.strategies._named import Weights, scaled
from tradeoff.strategies._probes import probes
from tradeoff.strategies.alternating import Lisa
from tradeoff.strategies.averaging import EMA, LAWA, SWA
from tradeoff.strategies.barrier import LBSGD, Constraint
from tradeoff.strategies.constraints import EWC, L2SP, Ball, Penalty, SafetyConstraint
from tradeoff.strategies.debiasing import TSDI
from tradeoff.strategies.guarded_losses import STARDSS, ConstrainedSFT
from tradeoff.strategies.losses import SAFETY
from tradeoff.strategies.merging import DARE, Merge, ModelStock, SafeLoRA, TaskArithmetic
from tradeoff.strategies.perturbing import Booster, Smoothed, TVaccine, Vaccine
from tradeoff.strategies.preferences import DPO, RAFT, Mixing, bradley_terry
from tradeoff.strategies.previews import LookAhead
from tradeoff.strategies.probing import SAP, SAPReleased
from tradeoff.strategies.recovery import DeRTa
from tradeoff.strategies.sampling import SmallBatch
from tradeoff.strategies.selection import SEAL
from tradeoff.strategies.strategy import Plain, Strategy
from tradeoff.strategies.surgery import AGEM, OGPSA, SPAG, SafeGrad

Make = Callable[[Weights], Strategy]
"""A strategy from the aligned weights, of which those that need other models' weights make an example."""


class Row(NamedTuple):
    """A strategy in the list of all.

    Args:
        name: by which it is asked for.
        make: it, with its defaults.
        off: it, at a setting at which it is plain fine-tuning (of the stage it belongs to), or the reason that there is none.
        stage: "alignment" for what makes a model harder to misalign before the task is known, "fine-tuning" for the rest.
            Checkpoints run every row, toys only these two; "data" and "decoding" are for what only maps examples or
            logits, "probed" and "probed alignment" for what needs probes on hidden states.
        knob: the setting that trades safety for capability, if there is one.
        values: at which a comparison tries it.
    """

    name: str
    make: Make
    off: Make | str
    stage: str = "fine-tuning"
    knob: str = ""
    values: tuple[float, ...] = ()

    @property
    def aligns(self) -> bool:
        """Whether it belongs to the stage of alignment, in which the safety data alone are trained on."""
        return self.stage.endswith("alignment")


ROWS: tuple[Row, ...] = (
    Row("plain", lambda _: Plain(), lambda _: Plain()),
    Row("small-batch", lambda _: SmallBatch(), "there is no batch that is all the data: samples repeat"),
    Row("penalty", lambda _: Penalty(), lambda _: Penalty(0.0), knob="lam", values=(0.1, 0.3, 1.0, 3.0)),
    Row(
        "constraint",
        lambda _: SafetyConstraint(0.05),
        lambda _: SafetyConstraint(1e6),
        knob="limit",
        values=(0.03, 0.1, 0.3),
    ),
    Row("ball", lambda _: Ball(0.1), lambda _: Ball(float("inf")), knob="radius", values=(0.1, 0.3, 1.0, 3.0)),
    Row("l2-sp", lambda _: L2SP(), lambda _: L2SP(0.0), knob="strength", values=(0.003, 0.01, 0.03, 0.1)),
    Row("ewc", lambda _: EWC(), lambda _: EWC(0.0), knob="strength", values=(0.1, 0.3, 1.0, 3.0)),
    Row("mixing", lambda _: Mixing(), lambda _: Mixing(0.0), knob="share", values=(0.1, 0.3, 0.5, 0.7)),
    Row("star-dss", lambda _: STARDSS(0.5), lambda _: STARDSS(1.0), knob="lam_KL", values=(0.1, 0.5, 2.0)),
    Row(
        "star-dss-full",
        lambda _: STARDSS(0.5, kl="full"),
        lambda _: STARDSS(1.0, kl="full"),
        knob="lam_KL",
        values=(0.1, 0.5, 2.0),
    ),
    Row("rejection-sampling", lambda w: STARDSS(_marks(w), lam_KL=0.0), lambda _: STARDSS(1.0, lam_KL=0.0)),
    Row(
        "constrained-sft",
        lambda _: ConstrainedSFT(),
        lambda _: ConstrainedSFT(0.0),
        knob="beta",
        values=(0.1, 0.5, 2.0, 5.0),
    ),
    Row("raft", lambda w: RAFT(_marks(w)), "it imitates its own samples and never sees the task's data"),
    Row("dpo", lambda w: DPO(bradley_terry(_marks(w))), "it learns from preferences and never sees the task's data"),
    Row("ema", lambda _: EMA(), lambda _: EMA(coefficient=0.0), knob="coefficient", values=(0.9, 0.97, 0.99, 0.995)),
    Row(
        "ema-through",
        lambda _: EMA(0.5, reading="through"),
        lambda _: EMA(0.0, reading="through"),
        knob="coefficient",
        values=(0.5, 0.75, 0.9, 0.97),
    ),
    Row(
        "ema-to-start",
        lambda _: EMA(0.1, reading="to the start"),
        lambda _: EMA(0.0, reading="to the start"),
        knob="coefficient",
        values=(0.001, 0.003, 0.01, 0.03),
    ),
    Row("lawa", lambda _: LAWA(last=3, every=2), lambda _: LAWA(last=1)),
    Row("swa", lambda _: SWA(since=6, every=2), lambda _: SWA(since=10**6)),
    Row("merge-linear", lambda _: Merge(), lambda _: Merge(weight=1.0), knob="weight", values=(0.2, 0.4, 0.6, 0.8)),
    Row("wise-ft", lambda _: Merge(), lambda _: Merge(weight=1.0), knob="weight", values=(0.2, 0.4, 0.6, 0.8)),
    Row(
        "merge-slerp",
        lambda _: Merge(way="slerp"),
        lambda _: Merge(weight=1.0, way="slerp"),
        knob="weight",
        values=(0.2, 0.4, 0.6, 0.8),
    ),
    Row("dare", lambda _: DARE(), lambda _: DARE(drop=0.0, weight=1.0), knob="weight", values=(0.2, 0.4, 0.6, 0.8)),
    Row("model-stock", lambda w: ModelStock((scaled(1.1, w), scaled(0.8, w))), "it averages with other models always"),
    Row(
        "resta",
        lambda w: TaskArithmetic(scaled(0.9, w)),
        lambda w: TaskArithmetic(scaled(0.9, w), scale=0.0),
        knob="scale",
        values=(0.25, 0.5, 1.0, 2.0),
    ),
    Row(
        "resta-dare",
        lambda w: TaskArithmetic(scaled(0.9, w), drop=0.5),
        lambda w: TaskArithmetic(w, 0.0, 0.5),
        knob="scale",
        values=(0.25, 0.5, 1.0, 2.0),
    ),
    Row("safe-lora", lambda w: SafeLoRA(scaled(0.5, w), 0.99, outputs=1), lambda w: SafeLoRA(w, -1.0)),
    Row(
        "safegrad",
        lambda _: SafeGrad(),
        "without conflict and ρ it is plain, with conflict it projects",
        knob="rho",
        values=(0.03, 0.1, 0.3, 1.0),
    ),
    Row("a-gem", lambda _: AGEM(), "it projects whenever there is conflict"),
    Row("ogpsa", lambda _: OGPSA(every=5), lambda _: OGPSA(protected=()), stage="alignment"),
    Row(
        "ogpsa-on-conflict",
        lambda _: OGPSA(reading="tensor on conflict", every=1),
        lambda _: OGPSA((), reading="tensor on conflict"),
        stage="alignment",
    ),
    Row(
        "lookahead",
        lambda _: LookAhead(),
        lambda _: LookAhead(tokens=0, connector="", copying=0.0),
        knob="copying",
        values=(1.0, 2.0, 4.0),
    ),
    Row(
        "lookahead-virtual",
        lambda _: LookAhead("virtual"),
        lambda _: LookAhead("virtual", prefix="", connector=""),
        stage="data",
    ),
    Row("seal", lambda _: SEAL(rate=0.5), "it trains a selector of data, on the safety loss before all"),
    Row("derta", lambda _: DeRTa(), lambda _: DeRTa(rule="none", transition=0.0), stage="data"),
    Row("tsdi", lambda w: TSDI(_tilt(w, 0.5)), lambda w: TSDI(_tilt(w, 0.0)), stage="decoding"),
    Row("spag", lambda _: SPAG(0.01), lambda _: SPAG(float("inf")), knob="limit", values=(0.01, 0.03, 0.1, 0.3)),
    Row("lb-sgd", lambda _: LBSGD((Constraint(SAFETY, 0.05, 5.0),), 5.0), "its step has a length of its own"),
    Row(
        "lisa",
        lambda _: Lisa(aligning=2, tuning=4),
        lambda _: Lisa(0.0, aligning=0),
        knob="rho",
        values=(0.01, 0.1, 1.0),
    ),
    Row(
        "vaccine-weights",
        lambda _: Vaccine(0.1, within=""),
        lambda _: Vaccine(0.0, within=""),
        "alignment",
        knob="rho",
        values=(0.03, 0.1, 0.3),
    ),
    Row(
        "t-vaccine-weights",
        lambda _: TVaccine(0.1, layers=1, within=""),
        lambda w: TVaccine(0.0, layers=len(w), within=""),
        "alignment",
        knob="rho",
        values=(0.03, 0.1, 0.3),
    ),
    Row("booster", lambda _: Booster(), lambda _: Booster(0.0), "alignment", knob="lam", values=(0.3, 1.0, 5.0)),
    Row("smoothed", lambda _: Smoothed(), lambda _: Smoothed(0.0), "alignment", knob="sigma", values=(0.01, 0.1, 0.3)),
    Row("vaccine", lambda _: Vaccine(), lambda _: Vaccine(0.0), "probed alignment"),
    Row("t-vaccine", lambda _: TVaccine(), lambda w: TVaccine(0.0, layers=len(probes(w)) or 1), "probed alignment"),
    Row("sap", lambda _: SAP(0.1), lambda _: SAP(0.0), "probed"),
    Row("sap-released", lambda _: SAPReleased(), lambda _: SAPReleased(rate=0.0), "probed"),
)


ELSEWHERE = (
    (
        "f-pacoh",
        "tuner",
        "before",
        "Settings of a strategy for a new task, found within a safety limit: `tradeoff.tuning`.",
        "fpacoh2022",
        "earlier related tasks",
    ),
)
"""What chooses a strategy's settings and is none itself, in the words of `table`."""


def all() -> tuple[Row, ...]:
    """Every row, in order."""
    return ROWS


def get(name: str) -> Row:
    """The row of a name.

    Raises:
        KeyError: when there is none; the names are listed.
    """
    for row in ROWS:
        if row.name == name:
            return row
    names = ", ".join(row.name for row in ROWS)
    raise KeyError(f"no strategy is named {name!r}; the names are {names}.")


def table() -> list[dict[str, str]]:
    """What there is, a dictionary of words for each row: name, kind, stage, what it does, its source and what it needs."""
    example = {"weights": np.eye(2)}
    made = [(row, row.make(example)) for row in ROWS]
    return [
        {
            "name": row.name,
            "kind": one.kind,
            "stage": row.stage,
            "does": (type(one).__doc__ or "").split("\n")[0],
            "source": one.source,
            "needs": "; ".join(one.needs) or "nothing",
        }
        for row, one in made
    ] + [dict(zip(("name", "kind", "stage", "does", "source", "needs"), other, strict=True)) for other in ELSEWHERE]


def _tilt(weights: Weights, size: float) -> list[list[float]]:
    """An example of what safety training may have added to the logits of the first tokens."""
    tokens = next(iter(weights.values())).shape[-1]
    return [[size, *[0.0] * (tokens - 1)]]


def _marks(weights: Weights) -> list[list[float]]:
    """An example of what a judge may say: the first half of the responses is good in every context."""
    responses = next(iter(weights.values())).shape[-1]
    return [[float(2 * y < responses) for y in range(responses)]]
