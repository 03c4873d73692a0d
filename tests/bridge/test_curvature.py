"""Second derivatives of a real architecture against plain ones: every sequence by itself, dense, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.flatten_util import ravel_pytree
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.bridge.tiny_models import save_tiny
from tradeoff.bridge import Recipe, adapted, curvature, finetune, policy
from tradeoff.bridge.checkpoints import SMOLLM2, Checkpoint, load
from tradeoff.bridge.curvature import norms_in_float64
from tradeoff.landscape import curvature_overlap, dense, direction, lanczos, trace
from tradeoff.tolerances import DERIVATIVE, IDENTITY, LIMIT
from tradeoff.worlds import World

KEY = jax.random.key(0)
VISIBLE = 1e-2  # a difference that no rounding explains
NORMS = ["model.layers.1.input_layernorm.weight", "model.layers.2.post_attention_layernorm.weight"]
LAST = ["model.layers.2.mlp.down_proj.weight", "model.layers.2.self_attn.k_proj.weight"]
SAME = {"rtol": DERIVATIVE.relative, "atol": DERIVATIVE.relative}
FINITE_DIFFERENCE = 1e-6  # of central differences with a step of 1e-5, beside numbers of order one
LAW = {torch.float64: LIMIT.relative, torch.float32: 2e-3}
STEPS = {torch.float64: [1e-4, -1e-4], torch.float32: [1e-2, -1e-2]}


@pytest.fixture
def tiny(tiny_folder) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


def sequences(checkpoint: Checkpoint, world: World, law):
    """Every sequence of the data by itself: its weight, its logits where a token is scored, the tokens."""
    encoding = policy.encode(checkpoint, world)
    for x, prompt in enumerate(encoding.prompts):
        for y, response in enumerate(encoding.responses):
            if cost := float(law.p[x] * law.P[x, y]):
                logits = checkpoint.model(torch.tensor([prompt + response[:-1]])).logits[0, len(prompt) - 1 :]
                yield cost, logits, torch.tensor(response)


def plain_hessian(checkpoint: Checkpoint, world: World, law, names) -> np.ndarray:
    held = [dict(checkpoint.model.named_parameters())[name].requires_grad_(True) for name in sorted(names)]
    with norms_in_float64(checkpoint.model), sdpa_kernel(SDPBackend.MATH):
        loss = -sum(
            cost * torch.log_softmax(logits, -1).gather(-1, response[:, None]).sum()
            for cost, logits, response in sequences(checkpoint, world, law)
        )
        slope = torch.cat([g.flatten() for g in torch.autograd.grad(loss, held, create_graph=True)])
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(s, held, retain_graph=True)]) for s in slope]
    for tensor in held:
        tensor.requires_grad_(False)
    return torch.stack(rows).numpy()


def plain_gauss_newton(checkpoint: Checkpoint, world: World, law, names) -> np.ndarray:
    """JᵀWJ with J by central differences of the logits."""
    held = [dict(checkpoint.model.named_parameters())[name] for name in sorted(names)]
    h, columns = 1e-5, []
    with norms_in_float64(checkpoint.model), torch.no_grad():
        at_rest = [(cost, torch.softmax(logits, -1)) for cost, logits, _ in sequences(checkpoint, world, law)]
        for tensor in held:
            flat = tensor.view(-1)
            for i in range(len(flat)):
                before, sides = float(flat[i]), []
                for step in (h, -h):
                    flat[i] = before + step
                    sides.append([logits for _, logits, _ in sequences(checkpoint, world, law)])
                flat[i] = before
                columns.append([(a - b) / (2 * h) for a, b in zip(*sides, strict=True)])
    G = np.zeros((len(columns),) * 2)
    for k, (cost, law_here) in enumerate(at_rest):
        J = torch.stack([column[k] for column in columns])  # (parameters, positions, vocabulary)
        mean = (law_here * J).sum(-1)
        G += cost * (torch.einsum("ipv,pv,jpv->ij", J, law_here, J) - mean @ mean.T).numpy()
    return G


def test_the_hessian_is_the_plain_one(tiny, few):
    one = NORMS[:1]
    expected = plain_hessian(tiny, few, few.safety, one)
    found = dense(curvature.hessian(tiny, few, "safety", one, batch_size=3))
    np.testing.assert_allclose(found, expected, **SAME)
    # Negative control: the task's Hessian is another.
    assert np.abs(dense(curvature.hessian(tiny, few, "capability", one)) - expected).max() > VISIBLE


def test_the_gauss_newton_matrix_is_the_plain_one(tiny, few):
    one = NORMS[1:]
    expected = plain_gauss_newton(tiny, few, few.capability, one)
    found = np.asarray(dense(curvature.gauss_newton(tiny, few, "capability", one)))
    np.testing.assert_allclose(found, expected, rtol=FINITE_DIFFERENCE, atol=FINITE_DIFFERENCE * np.abs(expected).max())
    assert np.linalg.eigvalsh(found)[0] > -IDENTITY.relative * np.abs(found).max()


def test_a_product_of_matrices_is_a_difference_of_gradients(tiny, world):
    operator = curvature.hessian(tiny, world, "safety", LAST)
    v = np.random.default_rng(0).normal(size=operator.size)
    v /= np.linalg.norm(v)
    tree = curvature.parameters(tiny, LAST)
    way = ravel_pytree(tree)[1](jnp.asarray(v))
    h, sides = 1e-5, []
    for step in (h, -h):
        with curvature.moved(tiny, way, step):
            held = [dict(tiny.model.named_parameters())[name].requires_grad_(True) for name in sorted(LAST)]
            with norms_in_float64(tiny.model):
                loss = -sum(
                    cost * torch.log_softmax(logits, -1).gather(-1, response[:, None]).sum()
                    for cost, logits, response in sequences(tiny, world, world.safety)
                )
                sides.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, held)]).numpy())
    expected = (sides[0] - sides[1]) / (2 * h)
    atol = FINITE_DIFFERENCE * np.abs(expected).max()
    np.testing.assert_allclose(operator @ jnp.asarray(v), expected, rtol=FINITE_DIFFERENCE, atol=atol)


def test_the_rooms_of_landscape_take_a_checkpoint_as_it_is(tiny, world):
    first, second = (curvature.fisher(tiny, world, of, NORMS) for of in ("capability", "safety"))
    F = np.asarray(dense(second))
    found = lanczos(second, KEY, steps=20, pairs=3)
    assert bool(jnp.all(found.converged))
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(F)[::-1][:3], rtol=DERIVATIVE.relative)
    estimate = trace(second, KEY, products=20)
    assert float(estimate.lower) < np.trace(F) < float(estimate.upper)
    both = curvature_overlap(first, second, KEY, pairs=2, steps=12)
    assert both.angles.shape == (2,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_local_law_of_a_language_model(tiny_folder, world, dtype):
    checkpoint = load(tiny_folder, device="cpu", dtype=dtype)
    way = direction(KEY, curvature.parameters(checkpoint, LAST), "tensor")
    law = curvature.local_law(checkpoint, world, way, STEPS[dtype])
    # Steps of both signs together cancel the term of first order.
    assert abs(float(jnp.mean(law.ratio)) - 1) < LAW[dtype]
    far = curvature.local_law(checkpoint, world, way, [1.0])
    assert abs(float(far.ratio[0]) - 1) > LAW[dtype]  # negative control: a step of the weights' own length is not small


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_local_law_of_a_real_language_model(smollm2, few, dtype):
    checkpoint = smollm2 if dtype == smollm2.dtype else load(SMOLLM2, device="cpu", dtype=dtype)
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (28, 29)]
    way = direction(KEY, curvature.parameters(checkpoint, names), "tensor")
    law = curvature.local_law(checkpoint, few, way, STEPS[dtype])
    assert abs(float(jnp.mean(law.ratio)) - 1) < LAW[dtype]


def test_inside_adapted_the_trainable_tensors_are_the_adapters(tiny, world):
    recipe = Recipe(penalty=1.0, steps=2, rank=2, upper_layers=1, learning_rate=1e-2)
    tuned = finetune(tiny, world, recipe, progress=False)
    with adapted(tiny, tuned) as checkpoint:
        tree = curvature.parameters(checkpoint)
        assert tree
        assert all("lora_" in name for name in tree)
        operator = curvature.gauss_newton(checkpoint, world)
        assert operator.size == sum(leaf.size for leaf in tree.values())
        assert bool(jnp.all(jnp.isfinite(operator @ jnp.ones(operator.size))))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (curvature.hessian, "no tensor of .* requires gradients; name those"),
        (lambda c, w: curvature.hessian(c, w, tensors=["nowhere"]), r"has no tensor \['nowhere'\]; there are model"),
        (lambda c, w: curvature.hessian(c, w, tensors=[]), "has no tensor of an empty list"),
        (lambda c, w: curvature.fisher(c, w, "harm", NORMS), "of is 'harm'"),
        (lambda c, w: curvature.fisher(c, w, "safety", NORMS, batch_size=0), "batch_size is 0"),
        (
            lambda c, w: curvature.local_law(c, w, curvature.parameters(c, NORMS), [0.0]),
            "the law compares steps that are not zero",
        ),
    ],
)
def test_bad_input_is_refused(tiny, world, call, says):
    with pytest.raises(ValueError, match=says):
        call(tiny, world)


def test_half_precision_and_untested_architectures_are_refused(tiny_folder, tmp_path, world):
    half = load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"torch\.bfloat16; second derivatives need float32"):
        curvature.hessian(half, world, tensors=NORMS)
    other = load(save_tiny(tmp_path, "gpt2"), device="cpu", dtype=torch.float64)
    with pytest.raises(ValueError, match="curvature is taken on packed rows, and architecture 'gpt2'"):
        curvature.hessian(other, world, tensors=["transformer.h.0.ln_1.weight"])
