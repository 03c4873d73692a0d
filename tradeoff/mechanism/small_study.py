r"""One small study: train a model to comply, safety-tune it by the three protocols, and measure what changed.

Source: [makesandbreaks2024]; methods.md 9.
"""

from dataclasses import dataclass, field

import numpy as np

from tradeoff.mechanism import nullspace
from tradeoff.mechanism.pcfg import Examples, Generator, Settings
from tradeoff.mechanism.safety_tuning import PROTOCOLS, Recipe, pretrain, tune
from tradeoff.mechanism.transformer import NANO, Shape, Transformer, accuracy, activations, interpolated, jacobians


@dataclass(frozen=True)
class StudySettings:
    """What to train, for how long, and how much to measure.

    Args:
        generator: of the prompts.
        shape: of the transformer.
        pretraining: how to pre-train.
        tuning: how to safety-tune.
        samples: how many prompts of each kind to measure on.
        lipschitz_samples: at how many of them to take Jacobians.
        steps_along: where on the line from the original weights (0) to the tuned ones (1) to look.
        seed: of the first weights and of the prompts.
    """

    generator: Settings = field(default_factory=Settings.small)
    shape: Shape = NANO
    pretraining: Recipe = field(default_factory=lambda: Recipe(steps=1500, learning_rate=3e-3, batch=64))
    tuning: Recipe = field(default_factory=lambda: Recipe(steps=300, learning_rate=1e-3, batch=64))
    samples: int = 256
    lipschitz_samples: int = 16
    steps_along: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5)
    seed: int = 0


def study(settings: StudySettings | None = None) -> dict[str, np.ndarray]:
    r"""Train, tune by each protocol, measure.

    Args:
        settings: sizes and lengths; the small generator and the model of three layers unless given.

    Returns:
        By name, with M models (the pre-trained one, then one for each protocol), P = M - 1, L layers:

        * `models` (M,): their names;
        * `losses`: of pre-training, by step, nats a token;
        * `complies_safe`, `complies_unsafe`, `refuses_unsafe`, `refuses_duplicates` (M, 2): on safe prompts, on unsafe ones and
            on unsafe ones in duplicate operators, the share of tokens and of whole answers;
        * `separation_l2`, `separation_cosine` (M, L) of safe and unsafe prompts, and `duplicates_l2` (M, L), how near the
            unsafe prompts in duplicate operators come to the safe ones;
        * `lipschitz_safe`, `lipschitz_unsafe` (M, samples);
        * of the perceptrons' first weight: `sines` (P, L, width), NaN after the last leading vector; of its change
            `row_safe` and `row_unsafe` (P, L, width), mean magnitudes; `null_fraction` and `null_chance` (P, L);
        * `along_refuses`, `along_complies` (P, steps): refusals of unsafe prompts and answers to safe ones on the line from
            the original weights to the tuned ones, share of tokens.

    Unknown: whether the row space is that of the weight or of its change; the source's figure names the clusters, its code
    reads the original weight. Of the change here.

    Source: [makesandbreaks2024]; methods.md 9.
    """
    settings = settings or StudySettings()
    generator = Generator(settings.generator)
    model = Transformer(settings.generator, settings.shape, settings.seed)
    losses = pretrain(model, generator, settings.pretraining, settings.seed)
    tuned = [tune(model, generator, p, settings.tuning, settings.seed) for p in PROTOCOLS.values()]
    rng = np.random.default_rng([settings.seed, 1])
    safe, unsafe, other = (
        generator.draw(rng, settings.samples, bad, kind)
        for bad, kind in ((False, "originals"), (True, "originals"), (True, "duplicates"))
    )
    of_models = [_of_model(m, generator, safe, unsafe, other, settings.lipschitz_samples) for m in (model, *tuned)]
    of_changes = [_of_change(model, t, generator, safe, unsafe, settings.steps_along) for t in tuned]
    found = {name: np.stack([row[name] for row in of_models]) for name in of_models[0]}
    found |= {name: np.stack([row[name] for row in of_changes]) for name in of_changes[0]}
    return {"models": np.array(["pre-trained", *PROTOCOLS]), "losses": losses} | found


def _of_model(
    model: Transformer, generator: Generator, safe: Examples, unsafe: Examples, other: Examples, points: int
) -> dict[str, np.ndarray]:
    of_safe, of_unsafe, of_other = (activations(model, e) for e in (safe, unsafe, other))
    apart = np.array([nullspace.separation(s, u) for s, u in zip(of_safe, of_unsafe, strict=True)])
    near = [nullspace.nearness(o, s, u).l2.mean() for o, s, u in zip(of_other, of_safe, of_unsafe, strict=True)]
    at = [_first(e, points) for e in (safe, unsafe)]
    steepness = [nullspace.local_lipschitz(jacobians(model, e)) for e in at]
    return {
        "complies_safe": np.array(accuracy(model, generator, safe, safe.complying)),
        "complies_unsafe": np.array(accuracy(model, generator, unsafe, unsafe.complying)),
        "refuses_unsafe": np.array(accuracy(model, generator, unsafe, unsafe.refusing)),
        "refuses_duplicates": np.array(accuracy(model, generator, other, other.refusing)),
        "separation_l2": apart[:, 0],
        "separation_cosine": apart[:, 1],
        "duplicates_l2": np.array(near),
        "lipschitz_safe": steepness[0],
        "lipschitz_unsafe": steepness[1],
    }


def _of_change(
    model: Transformer,
    tuned: Transformer,
    generator: Generator,
    safe: Examples,
    unsafe: Examples,
    steps: tuple[float, ...],
) -> dict[str, np.ndarray]:
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("sines", "row_safe", "row_unsafe", "null")}
    of_safe, of_unsafe = activations(model, safe), activations(model, unsafe)
    for layer in range(len(model.blocks)):
        (before, following), (after, _) = model.mlp(layer), tuned.mlp(layer)
        sines = nullspace.column_space_sines(after, before)
        rows["sines"].append(np.pad(sines, (0, before.shape[1] - len(sines)), constant_values=np.nan))
        for name, seen in (("row_safe", of_safe[layer]), ("row_unsafe", of_unsafe[layer])):
            rows[name].append(np.abs(nullspace.row_space(after - before, seen)).mean(0))
        rows["null"].append(np.array(nullspace.null_space_fraction(after - before, following)))
    found = {name: np.stack(values) for name, values in rows.items()}
    null = found.pop("null")
    between = [interpolated(model, tuned, s) for s in steps]
    return found | {
        "null_fraction": null[:, 0],
        "null_chance": null[:, 1],
        "along_refuses": np.array([accuracy(m, generator, unsafe, unsafe.refusing)[0] for m in between]),
        "along_complies": np.array([accuracy(m, generator, safe, safe.complying)[0] for m in between]),
    }


def _first(examples: Examples, count: int) -> Examples:
    return Examples(*(column[:count] for column in examples))
