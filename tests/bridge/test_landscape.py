"""Pictures, basins and constants of a real architecture: against scoring it where it stands, and differences of that."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import tradeoff as to
from tradeoff.bridge import Recipe, adapted, curvature, finetune, landscape, log_policy
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.landscape import dense, direction, visage_score
from tradeoff.tolerances import DERIVATIVE, MODEL_GRADIENT, SCORE

KEY = jax.random.key(0)
VISIBLE = 1e-2  # a difference that no rounding explains
DIFFERENCE = 1e-4  # of central differences with a step of 1e-3
NORMS = ["model.layers.1.input_layernorm.weight", "model.layers.2.post_attention_layernorm.weight"]
LAST = ["model.layers.2.mlp.down_proj.weight", "model.layers.2.self_attn.k_proj.weight"]


@pytest.fixture
def tiny(tiny_folder) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


def test_weights_are_put_back_bit_for_bit(tiny, world):
    before = {name: tensor.clone() for name, tensor in tiny.model.named_parameters()}
    way = direction(KEY, curvature.parameters(tiny, LAST))
    found = landscape.line(tiny, world, way, [0.0, 0.3])
    assert not any(tensor.requires_grad for tensor in tiny.model.parameters())
    for name, tensor in tiny.model.named_parameters():
        assert torch.equal(tensor, before[name])
    at_rest = to.gaps.both(world, log_policy(tiny, world))
    np.testing.assert_allclose(found.gaps.safety[0], at_rest.safety, rtol=0, atol=SCORE.absolute)
    assert float(found.gaps.safety[1]) != float(at_rest.safety)


def test_fine_tuning_is_a_direction_with_the_tuned_model_at_one(tiny, world):
    tuned = finetune(
        tiny, world, Recipe(penalty=1.0, steps=3, rank=2, upper_layers=1, learning_rate=1e-2), progress=False
    )
    way = landscape.displacement(tiny, tuned)
    assert {name.split(".")[2] for name in way} == {"2"}
    found = landscape.line(tiny, world, way, [0.0, 1.0]).gaps
    with adapted(tiny, tuned) as there:
        arrived = to.gaps.both(world, log_policy(there, world))
    np.testing.assert_allclose(found.safety[1], arrived.safety, rtol=0, atol=SCORE.absolute)
    np.testing.assert_allclose(found.capability[1], arrived.capability, rtol=0, atol=SCORE.absolute)
    assert abs(float(found.capability[1] - found.capability[0])) > VISIBLE


def test_tensors_anywhere_may_move(tiny, world):
    # The embedding is below every layer, and tied to the head above them.
    way = direction(KEY, curvature.parameters(tiny, ["model.embed_tokens.weight", *NORMS]), "tensor")
    found = landscape.line(tiny, world, way, [0.1])
    with curvature.moved(tiny, way, 0.1):
        there = to.gaps.both(world, log_policy(tiny, world))
    np.testing.assert_allclose(found.gaps.safety[0], there.safety, rtol=0, atol=SCORE.absolute)


def test_a_plane_is_made_of_lines(tiny, world):
    first = direction(KEY, curvature.parameters(tiny, LAST))
    second = direction(jax.random.key(1), curvature.parameters(tiny, LAST[:1]), "tensor")
    found = landscape.plane(tiny, world, first, second, [0.0, 0.2], [-0.1, 0.0, 0.1])
    assert found.gaps.safety.shape == (3, 2)
    along, across = (
        landscape.line(tiny, world, first, [0.0, 0.2]),
        landscape.line(tiny, world, second, [-0.1, 0.0, 0.1]),
    )
    same = {"rtol": 0, "atol": SCORE.absolute}
    np.testing.assert_allclose(found.gaps.safety[1], along.gaps.safety, **same)
    np.testing.assert_allclose(found.gaps.capability[:, 0], across.gaps.capability, **same)
    assert abs(float(along.gaps.safety[1] - along.gaps.safety[0])) > VISIBLE


def test_slopes_and_curvatures_along_a_direction_are_differences_of_the_gaps(tiny, world):
    way = direction(KEY, curvature.parameters(tiny, LAST), "tensor")
    t, h = 0.2, 1e-3
    found = landscape.along(tiny, world, way, [0.0, t])
    with curvature.norms_in_float64(tiny.model):
        near = landscape.line(tiny, world, way, [t - h, t, t + h]).gaps
    for of in ("safety", "capability"):
        low, middle, high = np.asarray(getattr(near, of))
        np.testing.assert_allclose(getattr(found.gaps, of)[1], middle, rtol=0, atol=SCORE.absolute)
        np.testing.assert_allclose(getattr(found.slope, of)[1], (high - low) / (2 * h), rtol=DIFFERENCE)
        np.testing.assert_allclose(getattr(found.curvature, of)[1], (high - 2 * middle + low) / h**2, rtol=DIFFERENCE)
    gradient = curvature.LossOf(tiny, world, "safety", LAST, 16).gradient()
    np.testing.assert_allclose(found.steepness.safety[0], np.linalg.norm(gradient), rtol=DERIVATIVE.relative)
    # Negative control: neither slope nor curvature is the same elsewhere.
    assert abs(float(found.slope.safety[0] / found.slope.safety[1] - 1)) > VISIBLE
    assert abs(float(found.curvature.safety[0] / found.curvature.safety[1] - 1)) > VISIBLE


def test_constants_over_a_ball_are_at_least_those_of_its_centre_and_no_bound(tiny, world):
    H = np.asarray(dense(curvature.hessian(tiny, world, "safety", NORMS[:1])))
    steepest = np.linalg.norm(curvature.LossOf(tiny, world, "safety", NORMS[:1], 16).gradient())
    small, large = (
        landscape.ball_constants(tiny, world, radius, KEY, samples=1, steps=12, tensors=NORMS[:1])
        for radius in (1e-9, 0.5)
    )
    np.testing.assert_allclose(small.lipschitz, steepest, rtol=MODEL_GRADIENT.relative)
    np.testing.assert_allclose(small.smoothness, np.abs(np.linalg.eigvalsh(H)).max(), rtol=MODEL_GRADIENT.relative)
    assert not large.certified
    assert float(large.lipschitz) > (1 + VISIBLE) * float(small.lipschitz)


def test_a_basin_ends_where_the_safety_gap_has_risen_by_the_threshold(tiny, world):
    rise, reach, points = 0.05, 1.0, 4
    found = landscape.basin(tiny, world, KEY, rise, "tensor", directions=2, reach=reach, points=points, tensors=LAST)
    start = float(landscape.line(tiny, world, direction(KEY, curvature.parameters(tiny, LAST)), [0.0]).gaps.safety[0])
    for key, ends in zip(jax.random.split(KEY, 2), np.asarray(found.ends), strict=True):
        way = direction(key, curvature.parameters(tiny, LAST), "tensor")
        for sign, end in zip((-1, 1), ends, strict=True):
            if end < reach:
                step = reach / points / 2**landscape.HALVINGS
                inside, outside = landscape.line(tiny, world, way, [sign * end, sign * (end + step)]).gaps.safety
                assert float(inside) <= start + rise < float(outside)
    assert int(found.open_ends) < 4
    assert found.unit == "multiples of each tensor's norm"


def test_visage_moves_every_matrix_and_puts_it_back(tiny, world):
    def attack_success(checkpoint: Checkpoint) -> float:
        gap = float(to.gaps.safety_gap(world, log_policy(checkpoint, world)))
        return 100 * gap / (50 + gap)

    before = {name: tensor.clone() for name, tensor in tiny.model.named_parameters()}
    found = landscape.visage(attack_success, tiny, KEY, tensors=LAST)
    assert float(found.score) == float(visage_score(found.attack_success[0]))
    way = direction(jax.random.split(KEY, 1)[0], curvature.parameters(tiny, LAST), "tensor")
    with curvature.moved(tiny, way, float(found.distances[0])):
        assert float(found.attack_success[0, 0]) == attack_success(tiny)
    assert float(jnp.ptp(found.attack_success)) > VISIBLE
    for name, tensor in tiny.model.named_parameters():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda c, w: landscape.line(c, w, {NORMS[0]: jnp.ones(3)}, [0.0]),
            r"the direction has arrays .*\(3,\).* and the parameters .*\(32,\)",
        ),
        (lambda c, w: landscape.ball_constants(c, w, 0.0, KEY, tensors=NORMS), "radius is 0.0"),
        (lambda c, w: landscape.basin(c, w, KEY, -1.0, tensors=NORMS), "basin was given threshold=-1.0"),
        (lambda c, w: landscape.basin(c, w, KEY, 0.1, "row", tensors=NORMS), "scale is 'row'"),
        (lambda c, w: landscape.visage(lambda c: 0.0, c, KEY, directions=0, tensors=NORMS), "directions is 0"),
        (lambda c, w: landscape.visage(lambda c: 101.0, c, KEY, tensors=LAST), "attack_success holds 101.0"),
    ],
)
def test_bad_input_is_refused(tiny, world, call, says):
    with pytest.raises(ValueError, match=says):
        call(tiny, world)
