r"""What a checkpoint is measured to be: its gaps on data, its distance from a teacher, how often it refuses.

On data of which only samples are known the entropy that a gap subtracts is not known either, so a gap here has a *named*
baseline: the loss of another checkpoint on the same rows, or zero.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tradeoff._files import write_atomically
from tradeoff.bridge import rows as rows_of
from tradeoff.bridge.checkpoints import SMOLLM2, Checkpoint, load
from tradeoff.bridge.data import Data, read_data, read_prompts
from tradeoff.bridge.intervals import Estimate, jackknife, ratio
from tradeoff.bridge.policy import Contract
from tradeoff.bridge.refusals import Refusals, refusal_rates
from tradeoff.bridge.similarity import ContextOverlap, context_overlap
from tradeoff.bridge.teacher import token_divergences
from tradeoff.studies.provenance import provenance

NO_BASELINE = "zero"
"""The baseline of a gap that is the loss itself."""

ROLES = ("safety", "capability", "proxy")


@dataclass(frozen=True)
class MeasureSettings:
    """What is measured.

    Attributes:
        checkpoint: its name, folder or `.gguf` file.
        safety: file or data set of safety data; None to leave it out.
        capability: of the task's data.
        proxy: of the safety data that are at hand while fine-tuning.
        baseline: the checkpoint whose loss on the same rows a gap subtracts; None for zero.
        teacher: a checkpoint whose predictions are compared with at every token.
        prompts: a file of prompts to be answered, and judged for refusals.
        overlap: whether the contexts of safety and task data are compared.
        limit: examples of each file, drawn by the seed; None for all.
        seed: of what is drawn.
        longest: tokens of a generated answer at most.
        batch_tokens: tokens in one forward pass; it changes speed and memory, not results.
    """

    checkpoint: str = SMOLLM2
    safety: str | None = None
    capability: str | None = None
    proxy: str | None = None
    baseline: str | None = None
    teacher: str | None = None
    prompts: str | None = None
    overlap: bool = False
    limit: int | None = None
    seed: int = 0
    longest: int = 48
    batch_tokens: int = rows_of.BATCH_TOKENS

    def __post_init__(self) -> None:
        """Check what must be there."""
        if not any(getattr(self, name) for name in (*ROLES, "prompts")):
            raise ValueError("Nothing is to be measured; give safety, capability or proxy data, or prompts.")
        if self.overlap and not (self.safety and self.capability):
            raise ValueError("The overlap of contexts was asked for; give both safety and capability data.")
        for name in ("limit", "longest", "batch_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; at least 1 is required.")


@dataclass(frozen=True)
class DataGap:
    """The loss and the gap of a checkpoint on data.

    Attributes:
        data: name of the data.
        digest: of what they say.
        shape: how they are written.
        examples: how many.
        tokens: scored in all.
        baseline: what the gap subtracts: the name of a checkpoint, or `zero`.
        loss: cross-entropy, nats for a token.
        gap: loss less baseline, nats for a token.
        gap_per_answer: the same in nats for an answer, the unit of the theory.
    """

    data: str
    digest: str
    shape: str
    examples: int
    tokens: int
    baseline: str
    loss: Estimate
    gap: Estimate
    gap_per_answer: Estimate


@dataclass(frozen=True)
class TeacherGap:
    """How far a checkpoint is from a teacher on data.

    Attributes:
        data: name of the data.
        digest: of what they say.
        teacher: the checkpoint whose law is the first argument of the divergence.
        per_token: the divergence at a token, nats.
        per_answer: summed over an answer, nats.
        by_position: its mean at the first, second, ... token of the answers that have one.
    """

    data: str
    digest: str
    teacher: str
    per_token: Estimate
    per_answer: Estimate
    by_position: tuple[float, ...]


@dataclass(frozen=True)
class Measurement:
    """What was measured of a checkpoint, and how.

    Attributes:
        checkpoint: its name.
        checkpoint_digest: of its files.
        dtype: number format of its weights.
        contract: the template, the special tokens, the tokens that count.
        gaps: by role: safety, capability, proxy.
        teacher: by role, if there is one.
        refusals: if prompts were given.
        overlap: if it was asked for.
        seconds: how long it took.
        made_by: settings, versions and the digest of the package's sources.
    """

    checkpoint: str
    checkpoint_digest: str
    dtype: str
    contract: Contract
    gaps: Mapping[str, DataGap]
    teacher: Mapping[str, TeacherGap]
    refusals: Refusals | None
    overlap: ContextOverlap | None
    seconds: float
    made_by: Mapping[str, str]

    def to_json(self) -> str:
        """The whole of it; infinities and NaN cannot occur."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Write `to_json`, whole or not at all."""
        write_atomically(path, lambda beside: beside.write_text(self.to_json(), encoding="utf-8"))

    def __str__(self) -> str:
        return "\n".join(f"{name:>28s}  {value}" for name, value in _lines(self))


def measure(settings: MeasureSettings, progress: bool = False) -> Measurement:
    """Measure a checkpoint on files of data.

    Args:
        settings: what is measured.
        progress: whether to show progress bars.

    Returns:
        The measurement.

    Raises:
        DataError: when data cannot be read or are not what they should be.
        CheckpointError: when a checkpoint cannot be loaded.
        ValueError: when a row does not fit the checkpoint, or an interval is asked of fewer than 2 rows.
    """
    began = time.perf_counter()
    # Data come first: a slip in a file is told before a model is loaded.
    data = {
        role: _limited(read_data(name), settings) for role in ROLES if (name := getattr(settings, role)) is not None
    }
    prompts = None if settings.prompts is None else _limited(read_prompts(settings.prompts), settings)
    checkpoint = load(settings.checkpoint)
    others = {name: load(name) for name in (settings.baseline, settings.teacher) if name is not None}
    baseline = None if settings.baseline is None else others[settings.baseline]
    options = {"batch_tokens": settings.batch_tokens, "progress": progress}
    gaps = {role: data_gap(checkpoint, each, baseline, **options) for role, each in data.items()}
    teacher = {}
    if settings.teacher is not None:
        teacher = {
            role: teacher_gap(others[settings.teacher], checkpoint, each, **options) for role, each in data.items()
        }
    refusals = None
    if prompts is not None:
        refusals = refusal_rates(checkpoint, prompts, settings.longest, progress=progress)
    overlap = None
    if settings.overlap:
        overlap = context_overlap(checkpoint, data["safety"], data["capability"], settings.seed, progress)
    return Measurement(
        checkpoint.name,
        checkpoint.digest,
        str(checkpoint.dtype),
        rows_of.contract(checkpoint),
        gaps,
        teacher,
        refusals,
        overlap,
        time.perf_counter() - began,
        provenance(settings, libraries=("torch", "transformers")),
    )


def data_gap(
    checkpoint: Checkpoint,
    data: Data,
    baseline: Checkpoint | None = None,
    batch_tokens: int = rows_of.BATCH_TOKENS,
    progress: bool = False,
) -> DataGap:
    r"""The loss $-\sum\log\pi(y_t|x,y_{<t})/\sum T$ of a checkpoint on data, and the gap to a baseline on the same rows.

    Args:
        checkpoint: the language model.
        data: questions and answers; the answers' tokens and the ends of their turns count.
        baseline: the checkpoint whose loss is subtracted; `None` for zero.
        batch_tokens: tokens in one forward pass; it changes speed and memory, not results.
        progress: whether to show a progress bar.

    Returns:
        Loss and gap with intervals over rows, which are paired with the baseline's.

    Raises:
        ValueError: as `rows.encode`; with fewer than 2 examples.
    """
    losses, tokens = _losses(checkpoint, data, batch_tokens, progress)
    gaps = losses if baseline is None else losses - _losses(baseline, data, batch_tokens, progress)[0]
    return DataGap(
        data=data.name,
        digest=data.digest,
        shape=data.shape,
        examples=len(losses),
        tokens=int(tokens.sum()),
        baseline=NO_BASELINE if baseline is None else baseline.name,
        loss=jackknife(ratio, np.stack([losses, tokens], axis=1)),
        gap=jackknife(ratio, np.stack([gaps, tokens], axis=1)),
        gap_per_answer=jackknife(np.mean, gaps),
    )


def teacher_gap(
    teacher: Checkpoint,
    checkpoint: Checkpoint,
    data: Data,
    batch_tokens: int = rows_of.BATCH_TOKENS,
    progress: bool = False,
) -> TeacherGap:
    """The divergence of a checkpoint from a teacher along the answers of data; see `teacher.token_divergences`.

    Args:
        teacher: whose law comes first.
        checkpoint: the language model.
        data: questions and answers.
        batch_tokens: tokens in one forward pass; it changes speed and memory, not results.
        progress: whether to show a progress bar.

    Returns:
        The divergence with intervals over rows, and by position.

    Raises:
        ValueError: when the two do not share a vocabulary; as `rows.encode`; with fewer than 2 examples.
    """
    encoded = rows_of.encode(checkpoint, data)
    found = token_divergences(teacher, checkpoint, encoded, batch_tokens, progress)
    sums, tokens = np.array([each.sum() for each in found]), np.array([float(len(each)) for each in found])
    longest = max(map(len, found))
    by_position = tuple(float(np.mean([each[t] for each in found if len(each) > t])) for t in range(longest))
    per_token = jackknife(ratio, np.stack([sums, tokens], axis=1))
    return TeacherGap(data.name, data.digest, teacher.name, per_token, jackknife(np.mean, sums), by_position)


def _losses(checkpoint: Checkpoint, data: Data, batch_tokens: int, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of every row."""
    encoded = rows_of.encode(checkpoint, data)
    scores = rows_of.token_log_probabilities(checkpoint, encoded, batch_tokens, progress)
    return np.array([-each.sum() for each in scores]), np.array([float(len(each)) for each in scores])


def _limited(data: Any, settings: MeasureSettings) -> Any:
    return data if settings.limit is None else data.subset(settings.limit, settings.seed)


def _lines(found: Measurement) -> list[tuple[str, str]]:
    lines = [("checkpoint", found.checkpoint)]
    for role, gap in found.gaps.items():
        lines.append((f"{role} data", f"{gap.data}, {gap.examples} examples, {gap.tokens} tokens"))
        lines.append((f"{role} loss", f"{gap.loss} nats a token"))
        lines.append((f"{role} gap", f"{gap.gap} nats a token above {gap.baseline}; {gap.gap_per_answer} an answer"))
        if role in found.teacher:
            there = found.teacher[role]
            lines.append((f"{role} to the teacher", f"{there.per_token} nats a token from {there.teacher}"))
    if found.refusals is not None:
        for judge in ("keyword", "prefix", "likelihood"):
            lines.append((f"refused, by {judge}", str(getattr(found.refusals, judge))))
    if found.overlap is not None:
        lines.append(("overlap, by classifier", f"{found.overlap.classifier.overlap}"))
        lines += [(f"overlap, by {name}", f"{getattr(found.overlap, name)}") for name in ("embedding", "gradient")]
    lines.append(("counted", f"{found.contract.counted}; {found.contract.layout}"))
    lines.append(("seconds", f"{found.seconds:.1f}"))
    return lines
