"""The balls that hold a checkpoint: the rule of the toys, on torch tensors, in place."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tradeoff.bridge import projection
from tradeoff.parameter_constraint import projection as rules
from tradeoff.tolerances import EXACT, IDENTITY, SCORE

RNG = np.random.default_rng(0)
START = {"one": RNG.normal(size=(3, 4)), "two": RNG.normal(size=5)}
MOVED = {name: value + RNG.normal(size=value.shape) for name, value in START.items()}
FACTORS = {
    f"layers.{i}.q.{factor}.default.weight": RNG.normal(size=shape)
    for i in range(2)
    for factor, shape in (("lora_A", (2, 6)), ("lora_B", (5, 2)))
}


def in_torch(named, dtype=torch.float64):
    return {name: torch.nn.Parameter(torch.tensor(value, dtype=dtype)) for name, value in named.items()}


def in_jax(named):
    return {name: jnp.asarray(value) for name, value in named.items()}


def same(a, b):
    for name in b:
        found = np.asarray(a[name].detach() if isinstance(a[name], torch.Tensor) else a[name])
        np.testing.assert_allclose(found, np.asarray(b[name]), rtol=EXACT.relative, atol=EXACT.relative)


@pytest.mark.parametrize("radius", [0.5, 1.5, 100.0])
def test_both_engines_follow_one_rule(radius):
    weights = in_torch(MOVED)
    projection.into_ball_(weights, projection.start_of(in_torch(START)), radius)
    same(weights, rules.ball(in_jax(MOVED), in_jax(START), radius))
    factors = in_torch(FACTORS)
    projection.into_product_ball_(factors, radius)
    same(factors, rules.product_ball(in_jax(FACTORS), projection.lora_factors(FACTORS), radius))


def test_the_ball_is_the_nearest_point_in_it():
    weights, start = in_torch(MOVED), projection.start_of(in_torch(START))
    flat = lambda named: np.concatenate([np.ravel(named[name]) for name in START])  # noqa: E731
    distance = np.linalg.norm(flat(MOVED) - flat(START))
    np.testing.assert_allclose(projection.into_ball_(weights, start, 1.0), distance, rtol=EXACT.relative)
    found = flat({name: p.detach() for name, p in weights.items()})
    np.testing.assert_allclose(np.linalg.norm(found - flat(START)), 1.0, rtol=EXACT.relative)
    # For the nearest point y of a convex set, (x - y)·(z - y) is at most 0 for every z in it; half as far, it is not.
    others = RNG.normal(size=(200, len(found)))
    others = flat(START) + others / np.linalg.norm(others, axis=1)[:, None]
    assert ((others - found) @ (flat(MOVED) - found)).max() <= IDENTITY.absolute
    nearer = flat(START) + (found - flat(START)) / 2
    assert ((others - nearer) @ (flat(MOVED) - nearer)).max() > 0


def test_the_product_ball_shortens_the_update_and_leaves_the_right_factors():
    factors = in_torch(FACTORS)
    pairs = projection.lora_factors(factors)
    before = {left: (factors[left] @ factors[right]).detach() for left, right in pairs}
    length = projection.into_product_ball_(factors, 1.0)
    assert length > 1
    for left, right in pairs:
        np.testing.assert_array_equal(factors[right].detach(), FACTORS[right])
        np.testing.assert_allclose(
            (factors[left] @ factors[right]).detach(), before[left] / length, rtol=IDENTITY.relative, atol=0
        )
    updates = [(factors[left] @ factors[right]).detach() for left, right in pairs]
    np.testing.assert_allclose(float(rules.length(updates)), 1.0, rtol=EXACT.relative)


def test_what_is_inside_stays_bit_for_bit():
    weights = in_torch(MOVED, torch.float32)
    before = projection.start_of(weights)
    projection.into_ball_(weights, projection.start_of(in_torch(START, torch.float32)), 100.0)
    factors = in_torch(FACTORS, torch.float32)
    same_factors = projection.start_of(factors)
    projection.into_product_ball_(factors, float("inf"))
    for name, value in {**before, **same_factors}.items():
        assert torch.equal({**weights, **factors}[name], value)


def test_a_projected_step_of_adam_stays_in_the_ball():
    """The way training uses it: step, project, step again."""
    weights, target = in_torch(START, torch.float32), 5.0
    start = projection.start_of(weights)
    optimiser = torch.optim.AdamW(weights.values(), lr=0.1, weight_decay=0.0)
    for _ in range(30):
        optimiser.zero_grad()
        sum(((p - target) ** 2).sum() for p in weights.values()).backward()
        optimiser.step()
        distance = projection.into_ball_(weights, start, 0.7)
    assert distance > 0.7  # the ball binds: an unprojected step leaves it
    left = float(rules.length([weights[name].detach() - start[name] for name in start]))
    np.testing.assert_allclose(left, 0.7, rtol=SCORE.absolute)


def test_wrong_calls_say_what_to_do():
    start = projection.start_of(in_torch(START))
    with pytest.raises(ValueError, match="radius ε is 0.0"):
        projection.into_ball_(in_torch(MOVED), start, 0.0)
    with pytest.raises(ValueError, match=r"differ in the names \['two'\]"):
        projection.into_ball_(in_torch({"one": MOVED["one"]}), start, 1.0)
    with pytest.raises(ValueError, match="'one' is not one of a pair of LoRA factors.*use into_ball_"):
        projection.into_product_ball_({**in_torch(FACTORS), **in_torch({"one": MOVED["one"]})}, 1.0)
    with pytest.raises(ValueError, match="no factors"):
        projection.into_product_ball_({}, 1.0)
    with pytest.raises(ValueError, match=r"not finite \(first of them: two\).*Lower the learning rate"):
        projection.into_ball_(in_torch({**MOVED, "two": np.full(5, np.nan)}), start, 1.0)
