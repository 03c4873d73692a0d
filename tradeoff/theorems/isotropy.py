"""T15: the price of isotropy: what a ball pays for not knowing the safety landscape, and when it pays nothing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff import divergences as dv
from tradeoff import gaps, loss_constraint
from tradeoff.parameter_constraint import penalised_path, price_of_isotropy
from tradeoff.problems.quadratic import half_square, length, spectrum
from tradeoff.problems.tabular import Tabular
from tradeoff.theorems import instances as draw
from tradeoff.theorems import landscapes as land
from tradeoff.theorems import table_instances as tables
from tradeoff.theorems._expressions import over
from tradeoff.theorems._quadratics import (
    FAR,
    MILD,
    RESTRICTIVE,
    greatest,
    large_penalty,
    normalised,
    small_ball,
    solved_along_axes,
    stiffness,
)
from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.instances import AtPenalty
from tradeoff.theorems.landscapes import Landscape
from tradeoff.tolerances import IDENTITY, LIMIT

FLAT_SAFETY = land.quadratics(decades=4.0, flat_task=False, safety="flat")
SAME_CONTEXTS = draw.at_penalty(full_support=True, contexts="same")
WORLDS = draw.at_penalty(full_support=True)
HEARD = 1e-9
"""A price this far below what its unit allows is rounding."""


# --- T15: the price of isotropy ---------------------------------------------------------------------------------


@theorem(
    "T15",
    title="the price of isotropy",
    statement=r"S_{II}(a)\sim\tfrac12a^2\frac{g^\top H_sg}{\|g\|^4},\quad S_*(a)\sim\tfrac12\frac{a^2}{g^\top H_s^{-1}g},\quad "
    r"\lim_{a\to0}\frac{S_{II}}{S_*}=\frac{(g^\top H_sg)(g^\top H_s^{-1}g)}{\|g\|^4}",
    family=MILD,
    parts=("Case II", "best", "price"),
    relation="==",
    assumptions=(land.SAFETY_CURVED, land.TASK_PULLS),
    without={
        "curved safety loss": "with g outside the range of a singular H_s the best costs nothing: T15(c)",
        "task pulls": "where the task does not pull there is nothing to gain",
    },
    makes_precise=RESTRICTIVE,
    tolerance=LIMIT,
)
def a_ball_pays_for_not_knowing_the_landscape(instance: Landscape) -> Sides:
    """At equal small gain, a ball loses more safety than the best by a factor that the two Hessians' angles decide."""
    quad = instance.quad
    g = quad.pull
    ball, best = normalised(quad, small_ball(quad)), normalised(quad, large_penalty(quad))
    steep, shallow = 2 * half_square(quad.H_s, g), jnp.dot(g, solved_along_axes(quad.H_s, g))
    return (
        jnp.stack([ball, best, ball / best]),
        jnp.stack([steep / jnp.sum(g**2) ** 2, 1 / shallow, price_of_isotropy(quad.H_s, g).price]),
    )


@theorem(
    "T15-bracket",
    title="the price has a ceiling",
    statement=r"1\le\frac{(g^\top H_sg)(g^\top H_s^{-1}g)}{\|g\|^4}\le\frac{(\kappa+1)^2}{4\kappa},\qquad\kappa=\mathrm{cond}(H_s)",
    family=MILD,
    parts=("at least one", "Kantorovich"),
    assumptions=(land.SAFETY_CURVED, land.TASK_PULLS),
    without={
        "curved safety loss": "with κ infinite there is no ceiling",
        "task pulls": "where the task does not pull there is no price",
    },
    tight=Tight(lambda: land.pair(jnp.diag(jnp.array([1.0, 1.0])), [1.0, 1.0], jnp.diag(jnp.array([1.0, 9.0])))),
    makes_precise=RESTRICTIVE,
)
def the_price_is_bounded_by_the_condition_number(instance: Landscape) -> Sides:
    """The price is one at best, and at worst about a quarter of the condition number of the safety landscape."""
    paid = price_of_isotropy(instance.quad.H_s, instance.quad.pull)
    return jnp.stack([jnp.ones_like(paid.price), paid.price]), jnp.stack([paid.price, paid.most])


@theorem(
    "T15a",
    title="no price along an eigenvector",
    statement=r"\text{price}-1=\sum_{i<j}w_iw_j\frac{(h_i-h_j)^2}{h_ih_j},\ w_i=\tfrac{(u_i^\top g)^2}{\|g\|^2}:\quad "
    r"\text{price}-1\ge\frac{\|H_sg-mg\|^2}{\|g\|^2\,m\max h},\ m=\tfrac{g^\top H_sg}{\|g\|^2}:\quad "
    r"\text{price}=1\iff H_sg\parallel g",
    family=MILD,
    parts=("one along an eigenvector", "the excess elsewhere", "more than one elsewhere"),
    relation=("==", "==", ">="),
    assumptions=(land.SAFETY_CURVED,),
    without={"curved safety loss": "an eigenvector of value 0 is pulled for nothing by both"},
    makes_precise=RESTRICTIVE,
    tolerance=IDENTITY,
)
def a_ball_is_best_only_along_an_axis(instance: Landscape) -> Sides:
    """A ball costs nothing extra exactly when the task pulls along an axis of the safety landscape."""
    quad = instance.quad
    h, U = spectrum(quad.H_s)
    g = instance.theta - quad.theta_s
    w = (U.T @ g) ** 2 / jnp.sum(g**2)
    excess = [w[i] * w[j] * (h[i] - h[j]) ** 2 / (h[i] * h[j]) for j in range(len(h)) for i in range(j)]
    # price - 1 = Σ w (h - m)²/(h m) with m = Σ w h, at least the variance of h over m max h: 0 only where H_s g ∥ g.
    mean = jnp.dot(g, quad.H_s @ g) / jnp.sum(g**2)
    turned = quad.H_s @ g - mean * g
    least = jnp.sum(turned**2) / jnp.sum(g**2) / (mean * h[-1])
    product = 2 * half_square(quad.H_s, g) * jnp.dot(g, solved_along_axes(quad.H_s, g)) / jnp.sum(g**2) ** 2
    along, across = (price_of_isotropy(quad.H_s, v) for v in (U[:, 0], g))
    return (
        jnp.stack([along.price, product, across.price]),
        jnp.stack([jnp.ones_like(product), 1 + sum(excess), 1 + least]),
    )


@theorem(
    "T15a-flow",
    title="early stopping pays the same price",
    statement=r"\dot\theta=-\nabla L_f,\ t\to0:\quad S(a)\sim\tfrac12a^2\,\frac{g^\top H_sg}{\|g\|^4}",
    family=MILD,
    relation="==",
    assumptions=(land.SAFETY_CURVED, land.TASK_PULLS),
    without={
        "curved safety loss": "not needed unless H_s g = 0 (T16(e))",
        "task pulls": "where the task does not pull nothing moves",
    },
    makes_precise=RESTRICTIVE,
    tolerance=LIMIT,
)
def early_stopping_is_as_blind_as_a_ball(instance: Landscape) -> Sides:
    """Stopping gradient descent early is a ball in disguise: it pays the price of isotropy too."""
    quad = instance.quad
    g = quad.pull
    time = 1 / (FAR * stiffness(quad, jnp.eye(len(g))))
    rates, U = spectrum(quad.H_f)
    exponent = -jnp.maximum(rates, 0) * time
    filtered = jnp.where(exponent < 0, jnp.expm1(exponent) / jnp.where(exponent < 0, exponent, 1), 1)
    delta = time * (U @ (filtered * (U.T @ g)))
    return normalised(quad, delta), 2 * half_square(quad.H_s, g) / jnp.sum(g**2) ** 2


@theorem(
    "T15b",
    title="the right metric removes the price",
    statement=r"\|\theta-\theta_s\|_A\le\varepsilon:\ \text{price}=\frac{(u^\top H_su)(g^\top H_s^{-1}g)}{(g^\top u)^2},\ u=A^{-1}g;"
    r"\qquad=1\text{ for }A=H_s",
    family=MILD,
    parts=("any ellipsoid", "its price", "the safety Hessian"),
    relation="==",
    assumptions=(land.SAFETY_CURVED, land.TASK_PULLS),
    without={
        "curved safety loss": "H_s is then no metric",
        "task pulls": "where the task does not pull there is no price",
    },
    makes_precise=RESTRICTIVE,
    tolerance=LIMIT,
)
def measuring_distance_by_safety_costs_nothing_extra(instance: Landscape) -> Sides:
    """If distance is measured by the safety Hessian (the Fisher matrix), a constraint on weights is as good as any."""
    quad = instance.quad
    g = quad.pull
    A = quad.H_s[::-1, ::-1]
    u = solved_along_axes(A, g)
    shallow = jnp.dot(g, solved_along_axes(quad.H_s, g))
    price = 2 * half_square(quad.H_s, u) * shallow / jnp.dot(g, u) ** 2
    ellipsoid, own = (normalised(quad, small_ball(quad, metric)) for metric in (A, quad.H_s))
    return (
        jnp.stack([ellipsoid * shallow, price_of_isotropy(quad.H_s, g, A).price, own * shallow]),
        jnp.stack([price, price, jnp.ones_like(price)]),
    )


@theorem(
    "T15c",
    title="free capability in flat directions",
    statement=r"g\notin\mathrm{range}\,H_s:\quad S_*(a)=0\text{ up to }a=\tfrac12g^\top N(N^\top H_fN)^{-1}N^\top g,\ N=\ker H_s;"
    r"\qquad S_{II}(a)\sim\tfrac12a^2\frac{g^\top H_sg}{\|g\|^4}",
    family=FLAT_SAFETY,
    parts=("costs nothing", "gains", "gains something", "a ball pays"),
    relation=("==", "==", ">=", "=="),
    assumptions=(land.SAFETY_FLAT,),
    without={"flat safety direction": "with g inside the range of H_s nothing is free, and the claim is empty: T15"},
    makes_precise=RESTRICTIVE,
    tolerance=LIMIT,
)
def flat_directions_are_free_except_for_a_ball(instance: Landscape) -> Sides:
    """Where the safety loss is flat, capability costs nothing, but a ball pays for it all the same."""
    quad = instance.quad
    g = quad.pull
    free = penalised_path(quad, jnp.inf)
    h, U = spectrum(quad.H_s)
    kernel = U * jnp.where(h > land.NOTHING * h[-1], 0.0, 1.0)[None, :]
    projector = kernel @ kernel.T
    inner = projector @ quad.H_f @ projector + (jnp.eye(len(h)) - projector) * jnp.trace(quad.H_f)
    most = jnp.dot(g, projector @ solved_along_axes(inner, projector @ g)) / 2
    outside = jnp.sum((projector @ g) ** 2)
    zero = jnp.zeros_like(most)
    # In its unit, and down to what rounding leaves of it: g may lie in the flat directions but for a millionth.
    unit = length(quad.H_s) / jnp.sum(g**2)
    law = 2 * half_square(quad.H_s, g) / jnp.sum(g**2) ** 2
    paid, steep = (x / unit + HEARD for x in (normalised(quad, small_ball(quad)), law))
    return (
        jnp.stack([free.gaps.safety, quad.gain(free.displacement), most, paid]),
        jnp.stack([zero, most, outside / (2 * greatest(quad.H_f)), steep]),
    )


# --- T15: the price for a table of logits -----------------------------------------------------------------------


@theorem(
    "T15d",
    title="the price for a table of logits",
    statement=r"D=P_f-P_s:\quad g^\top H_sg=\sum p_sp_f^2\mathrm{Var}_{P_s}(D),\quad g^\top H_s^+g=\sum_O\tfrac{p_f^2}{p_s}\chi^2(P_f\|P_s),"
    r"\quad\|g\|^2=\sum p_f^2\|D\|_2^2",
    family=WORLDS,
    parts=("gᵀHg", "pseudo-inverse solves", "gᵀH⁺g", "‖g‖²"),
    relation="==",
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": "a proxy plays no part in Case II"},
    makes_precise=RESTRICTIVE,
    tolerance=IDENTITY,
)
def the_price_of_a_table_is_known_from_its_data(instance: AtPenalty) -> Sides:
    """For free logits every part of the price is a spread or a chi-squared of the two answers."""
    world = instance.world
    s, f = world.safety, world.capability
    aligned = Tabular(world).aligned()
    g = -jax.grad(lambda z: gaps.capability_gap(world, jax.nn.log_softmax(z, axis=-1)))(aligned)
    # The sum of D is rounding, which 1/P_s would enlarge.
    D = f.P - s.P
    D = D - s.P * jnp.sum(D, axis=-1, keepdims=True)
    mean = jnp.sum(s.P * D, axis=-1, keepdims=True)
    spread = jnp.sum(s.P * (D - mean) ** 2, axis=-1)

    def curved(v: Array) -> Array:
        slope = jax.grad(lambda z: gaps.safety_gap(world, jax.nn.log_softmax(z, axis=-1)))
        return jax.jvp(slope, (aligned,), (v,))[1]

    shared = world.shared[:, None]
    inverse = jnp.where(shared, over(f.p, s.p)[:, None] * D / s.P, 0)
    in_range = jnp.where(shared, f.p[:, None] * D, 0)
    size = length(in_range)
    missed = length(curved(inverse) - in_range) / jnp.where(size > 0, size, 1)
    return (
        jnp.stack([jnp.sum(g * curved(g)), 1 + missed, jnp.sum(g * inverse), jnp.sum(g**2)]),
        jnp.stack([
            jnp.sum(s.p * f.p**2 * spread),
            jnp.ones_like(missed),
            jnp.sum(over(f.p**2, s.p) * dv.chi_squared(f.P, s.P)),
            jnp.sum(f.p[:, None] ** 2 * D**2),
        ]),
    )  # fmt: skip


@theorem(
    "T15d-limit",
    title="the price for a table of logits, as paid",
    statement=r"\lim_{a\to0}\frac{S_{II}}{S_*}=\frac{\sum p_sp_f^2\mathrm{Var}_{P_s}(D)\ \sum_O\frac{p_f^2}{p_s}\chi^2(P_f\|P_s)}"
    r"{(\sum p_f^2\|D\|_2^2)^2}",
    family=SAME_CONTEXTS,
    parts=("Case II", "Case I"),
    relation="==",
    assumptions=(draw.EXACT_PROXY, draw.SAME_CONTEXTS),
    without={
        "exact proxy": "with a proxy Case I does not end at the aligned policy: T6(c)",
        "same contexts": "where the task has contexts of its own capability is free there, unless the answers agree: T15(c)",
    },
    makes_precise=RESTRICTIVE,
    tolerance=LIMIT,
)
def a_table_pays_the_price(instance: AtPenalty) -> Sides:
    """Measured on the policies themselves, a small ball and a large penalty cost what the formulas say."""
    world = instance.world
    s, f = world.safety, world.capability
    g, D = tables.pull(world), f.P - s.P
    step = 1 / FAR
    centred = step * (g - jnp.sum(s.P * g, axis=-1, keepdims=True))
    lost = jnp.log1p(jnp.sum(s.P * dv.expm1_minus_x(centred), axis=-1))
    gain = step * jnp.sum(g**2) - jnp.sum(f.p * lost)
    spread = jnp.sum(s.P * (D - jnp.sum(s.P * D, axis=-1, keepdims=True)) ** 2, axis=-1)
    steep = jnp.sum(s.p * f.p**2 * spread) / jnp.sum(g**2) ** 2
    # Case I: w = p_f/(p_f + λ p_s) small, so that the gain is linear in it and the loss quadratic.
    lam = FAR * jnp.maximum(jnp.max(over(f.P, s.P)), 1.0)
    task, _ = loss_constraint.mixture_weights(world, lam)
    # L_f(P_s) - L_f(M) = Σ p_f P_f log(1 + x) with x = M/P_s - 1 = w D/P_s, of which Σ P_s x = 0 is taken out.
    x = task[:, None] * D / s.P
    gained = jnp.sum(f.p[:, None] * (D * jnp.log1p(x) - s.P * dv.x_minus_log1p(x)))
    chi = jnp.sum(over(f.p**2, s.p) * dv.chi_squared(f.P, s.P))
    return (
        jnp.stack([2 * jnp.sum(s.p * lost) / gain**2, 2 * loss_constraint.gaps(world, lam).safety / gained**2]),
        jnp.stack([steep, 1 / chi]),
    )
