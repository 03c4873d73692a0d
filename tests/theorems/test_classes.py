"""T9 and T10 against brute force: classes in exact fractions, every outcome of the draws one by one, and wrong versions."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mpf
from scipy.stats import binom, multinomial

import tradeoff as to
from tests.oracle import kl, law
from tests.theorems.mutants import wrong
from tradeoff import theorems
from tradeoff.theorems import class_instances as classes
from tradeoff.theorems import verify
from tradeoff.theorems.class_instances import Losses, Sweep
from tradeoff.theorems.samples import Sampled
from tradeoff.tolerances import IDENTITY, agree

KEY = jax.random.key(4)


# --- T9: a class in exact fractions -----------------------------------------------------------------------------


def fractions(rng, count):
    return [Fraction(int(n), 16) for n in rng.integers(-32, 32, count)]


def minimisers(f, s, lam, eta=0):
    """Members whose penalised loss is within η of the least."""
    paid = [a + lam * b for a, b in zip(f, s, strict=True)]
    return [i for i, one in enumerate(paid) if one <= min(paid) + eta]


def floats(values):
    return jnp.array([float(v) for v in values])


def same(ours, exact):
    return all(agree(float(a), float(b), IDENTITY) for a, b in zip(ours, exact, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_t9a_and_t9b_are_what_comparing_losses_gives(seed):
    rng = np.random.default_rng(seed)
    f, s = fractions(rng, 6), fractions(rng, 6)
    lam, eta = Fraction(int(rng.integers(1, 40)), 8), Fraction(int(rng.integers(0, 16)), 8)
    at_proxy = min(a for a, b in zip(f, s, strict=True) if b == min(s))
    at_task = min(b for a, b in zip(f, s, strict=True) if a == min(f))
    for i in minimisers(f, s, lam, eta):
        proxy_gap, capability_gap = s[i] - min(s), f[i] - min(f)
        by_price = (at_proxy - f[i] + eta) / lam, lam * (at_task - s[i]) + eta
        by_rate = (at_proxy - min(f) + eta) / lam, lam * (at_task - min(s)) + eta
        assert proxy_gap <= by_price[0] <= by_rate[0]
        assert capability_gap <= by_price[1] <= by_rate[1]
        best = min(a - min(f) + lam * (b - min(s)) for a, b in zip(f, s, strict=True))
        assert capability_gap + lam * proxy_gap <= best + eta

        instance = Losses(floats(f), floats(s), jnp.float64(lam), jnp.float64(eta), jnp.arange(6) == i)
        assert classes.NEARLY_BEST.holds(instance)
        left, right = theorems.get("T9a").sides(instance)
        of_f, of_s = 1 / (1 + lam), lam / (1 + lam)
        assert same((right - left)[:2], [of_s * (bound - proxy_gap) for bound in (by_price[0], by_rate[0])])
        assert same((right - left)[2:], [of_f * (bound - capability_gap) for bound in (by_price[1], by_rate[1])])
        left, right = theorems.get("T9b").sides(instance)
        assert same([left, right], [of_f * (capability_gap + lam * proxy_gap), of_f * (best + eta)])


@pytest.mark.parametrize("seed", range(6))
def test_t9c_is_what_a_sweep_over_a_class_does(seed):
    rng = np.random.default_rng(seed)
    f, s = fractions(rng, 8), fractions(rng, 8)
    lams = sorted({Fraction(int(n), 8) for n in rng.integers(1, 60, 6)})
    found = [minimisers(f, s, lam) for lam in lams]
    for (low, here), (high, there) in itertools.pairwise(zip(lams, found, strict=True)):
        for i, j in itertools.product(here, there):
            assert s[j] <= s[i]
            assert f[j] >= f[i]
            assert low * (s[i] - s[j]) <= f[j] - f[i] <= high * (s[i] - s[j])
    for i in {i for members in found for i in members}:
        assert f[i] == min(a for a, b in zip(f, s, strict=True) if b <= s[i])
    claim = theorems.get("T9c")
    sides = claim.sides(Sweep(floats(f), floats(s), floats(lams), jnp.zeros(())))
    assert not claim.violations(sides).any()


def test_t9c_a_sweep_finds_the_supported_members_only():
    """Of three members none of which dominates another, the one above the line through the others is never chosen."""
    f, s = [Fraction(0), Fraction(1), Fraction(3, 5)], [Fraction(1), Fraction(0), Fraction(3, 5)]
    assert {i for n in range(1, 80) for i in minimisers(f, s, Fraction(n, 20))} == {0, 1}
    f[2] = s[2] = Fraction(2, 5)
    assert 2 in minimisers(f, s, Fraction(1))


@pytest.mark.parametrize("index", [0, 1, 2, 3, 4, 5])
def test_t9d_is_what_high_precision_gives(index):
    instance = theorems.replay(theorems.get("T9d"), KEY, index)
    world, lam, eta = instance.world, mpf(float(instance.losses.lam)), mpf(float(instance.losses.eta))
    cells = list(itertools.product(*map(range, world.safety.P.shape)))

    def joint(law):
        return {(x, y): mpf(float(law.p[x])) * mpf(float(law.P[x, y])) for x, y in cells}

    D_s, D_q, D_f = (joint(law) for law in (world.safety, world.training_safety, world.capability))
    members = [{(x, y): mpf(float(table[x, y])) for x, y in cells} for table in instance.log_policies]
    L_s, L_q, L_f = ([-sum(D[c] * one[c] for c in cells) for one in members] for D in (D_s, D_q, D_f))
    apart = sum(abs(D_s[c] - D_q[c]) for c in cells) / 2
    seen = [c for c in cells if D_s[c] + D_q[c] > 0]
    best, here = int(np.argmin(L_s)), int(jnp.argmax(instance.losses.chosen))
    ratio = [members[best][c] - members[here][c] for c in seen]
    osc, B = max(ratio) - min(ratio), max(-one[c] for one in members for c in seen)
    G_s = L_s[here] - L_s[best]
    at_proxy = L_f[int(np.argmin(L_q))] - min(L_f)
    last = (at_proxy + eta) / lam + 2 * B * apart
    share = lam / (1 + lam)
    left, right = theorems.get("T9d").sides(instance)
    assert same(left, [G_s, osc, share * G_s])
    assert same(right, [L_q[here] - min(L_q) + osc * apart, 2 * B, share * last])


# --- T10: every outcome of the draws ----------------------------------------------------------------------------


def drawn(P_s, draws, K, P_f=None, p_s=None, p_f=None, lam=1.0):
    """Safety data over K listed responses, drawn from n(x) times in context x."""
    X = len(P_s)
    p_s, p_f = (np.full(X, 1 / X) if p is None else np.asarray(p) for p in (p_s, p_f))
    world = to.World(to.DataLaw(p_s, P_s), to.DataLaw(p_f, P_s if P_f is None else P_f))
    return Sampled(world, jnp.arange(world.safety.P.shape[-1]) < K, jnp.asarray(draws), jnp.float64(lam))


@pytest.mark.parametrize("K", [2, 3, 6])
@pytest.mark.parametrize("n", [0, 1, 3, 10])
def test_t10_against_scipys_binomial(K, n):
    rng = np.random.default_rng(K * 100 + n)
    P, p = rng.dirichlet(np.full(K, 0.5), size=2), [0.3, 0.7]
    instance = drawn(P, [n, n], K, p_s=p)
    outcomes = np.arange(n + 1)
    expected = sum(
        p[x] * P[x, y] * float(np.sum(binom.pmf(outcomes, n, P[x, y]) * np.log(P[x, y] * (n + K) / (outcomes + 1))))
        for x, y in itertools.product(range(2), range(K))
    )
    bound = np.log1p((K - 1) / (n + 1))
    left, right = theorems.get("T10").sides(instance)
    assert same(left, [expected, bound])
    assert same(right, [bound, (K - 1) / (n + 1)])
    assert expected <= bound


def outcomes_of(P, n):
    """Every count of n draws from a law, with its probability and the add-one estimate."""
    for counts in itertools.product(range(n + 1), repeat=len(P)):
        if sum(counts) == n:
            chance = float(multinomial.pmf(counts, n, P)) if n else 1.0
            yield chance, (np.array(counts) + 1) / (n + len(P))


@pytest.mark.parametrize("lam", [0.2, 5.0])
def test_t10_against_every_outcome_and_the_minimiser_that_it_leads_to(lam):
    """The claim adds up binomials, response by response; here whole samples are drawn, and fine-tuned on."""
    rng = np.random.default_rng(0)
    P_s, P_f = rng.dirichlet(np.ones(3), size=2), rng.dirichlet(np.ones(3), size=2)
    p_s, p_f, draws = [0.25, 0.75], [0.6, 0.4], [2, 3]
    instance = drawn(P_s, draws, 3, P_f, p_s, p_f, lam)
    mismatch = gap = 0.0
    for (chance_0, row_0), (chance_1, row_1) in itertools.product(*(outcomes_of(P_s[x], draws[x]) for x in (0, 1))):
        proxy = to.DataLaw(p_s, np.stack([row_0, row_1]))
        world = to.World(instance.world.safety, instance.world.capability, proxy)
        apart = [kl(law(truth), law(row)) for truth, row in zip(P_s, (row_0, row_1), strict=True)]
        mismatch += chance_0 * chance_1 * float(p_s[0] * apart[0] + p_s[1] * apart[1])
        gap += chance_0 * chance_1 * float(to.loss_constraint.gaps(world, lam).safety)
    assert agree(float(theorems.get("T10").sides(instance)[0][0]), mismatch, IDENTITY)
    left, right = theorems.get("T10-gap").sides(instance)
    assert agree(float(left[0]), gap, IDENTITY)
    few = sum(p * np.log1p(2 / (n + 1)) for p, n in zip(p_s, draws, strict=True))
    diluted = sum(p * np.log1p(q / (lam * p)) for p, q in zip(p_s, p_f, strict=True))
    assert same(right, [few + diluted, few + np.log1p(1 / lam)])


# --- wrong versions ---------------------------------------------------------------------------------------------


def slip(name, part, change, relation="<="):
    """One inequality of a claim, changed: (left, right, instance) -> (left, right)."""

    def sides(instance):
        left, right = (jnp.atleast_1d(side)[part] for side in theorems.get(name).sides(instance))
        return change(left, right, instance)

    return lambda: wrong(name, "a slip", sides, relation)


def on(name, part, alter):
    """One inequality of a claim, at an instance that is altered first."""
    return lambda: wrong(
        name, "a slip", lambda i: tuple(jnp.atleast_1d(side)[part] for side in theorems.get(name).sides(alter(i)))
    )


def counted(left, i, less, more):
    """T10 with other numbers in the place of K-1 and n+1."""
    K, n = jnp.sum(jnp.where(i.listed, 1.0, 0.0)), i.draws.astype(jnp.float64)
    return left, jnp.sum(i.world.safety.p * jnp.log1p((K - less) / (n + more)))


def few_draws(i):
    """The mismatch that few draws leave at most."""
    return theorems.get("T10").sides(i)[1][0]


WRONG = {
    "T9a: η dropped": on("T9a", 0, lambda i: i._replace(eta=0 * i.eta)),
    "T9a: λ upside down": on("T9a", 1, lambda i: i._replace(lam=1 / i.lam)),
    "T9a: half the rate for G_s": slip("T9a", 1, lambda left, right, _: (left, right / 2)),
    "T9a: half the rate for G_f": slip("T9a", 3, lambda left, right, _: (left, right / 2)),
    "T9a: negative price dropped": slip("T9a", 0, lambda left, right, i: (left, right - i.shares[0] * i.eta)),
    "T9b: η dropped": on("T9b", 0, lambda i: i._replace(eta=0 * i.eta)),
    "T9b: a better class": slip("T9b", 0, lambda left, right, _: (left, 0.99 * right)),
    "T9b-both: half of η": slip("T9b-both", 0, lambda left, right, _: (left, right / 2)),
    "T9b-both: no good member": lambda: wrong(
        "T9b-both", "any class", lambda i: tuple(side[1] for side in theorems.get("T9b-both").sides(i)),
        family=classes.CLASSES, assumptions=(classes.NEARLY_BEST,),
    ),
    "T9c: the proxy gap rises": slip("T9c", 0, lambda left, right, _: (left, -right), relation="=="),
    "T9c: the capability gap falls": slip("T9c", 1, lambda left, right, _: (left, -right), relation="=="),
    "T9c: at least λ'": slip("T9c", 3, lambda left, right, _: (right, left)),
    "T9c: at most λ": slip("T9c", 2, lambda left, right, _: (right, left)),
    "T9c: Everett without his constraint": slip("T9c", 4, lambda left, _r, _i: (left, jnp.zeros_like(left)), relation="=="),
    "T9c: nearly minimisers": lambda: wrong(
        "T9c", "any member", lambda i: tuple(side[4] for side in theorems.get("T9c").sides(i._replace(eta=i.lams[0]))), "=="
    ),
    "T9d: half of TV": slip(
        "T9d", 0, lambda left, right, i: (left, (right + i.losses.at_chosen(i.losses.gaps[1])) / 2)
    ),
    "T9d: the proxy is the original": slip("T9d", 0, lambda left, _, i: (left, i.losses.at_chosen(i.losses.gaps[1]))),
    "T9d: B for 2B": slip("T9d", 1, lambda left, right, _: (left, right / 2)),
    "T9d: no term for the proxy": slip(
        "T9d", 2, lambda left, _, i: (left, i.losses.shares[0] * (jnp.max(i.losses.gaps[0]) + i.losses.eta))
    ),
    "T10: n+2 for n+1": slip("T10", 0, lambda left, _, i: counted(left, i, less=1, more=2)),
    "T10: K-2 for K-1": slip("T10", 0, lambda left, _, i: counted(left, i, less=2, more=1)),
    "T10: from above": slip("T10", 0, lambda left, right, _: (left, right), relation=">="),
    "T10: half of it": slip("T10", 1, lambda left, right, _: (left, right / 2)),
    "T10-gap: no mismatch": slip("T10-gap", 0, lambda left, right, i: (left, right - few_draws(i))),
    "T10-gap: no dilution": slip("T10-gap", 0, lambda left, _, i: (left, few_draws(i))),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_version_is_rejected(name):
    assert not verify(WRONG[name](), KEY, 2_000).holds
