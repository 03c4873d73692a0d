"""T11 against brute force: every answer of a tree enumerated in 50 digits, longer answers, and wrong versions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import log, mpf

import tradeoff as to
from tests.compiled import once
from tests.oracle import kl
from tests.oracle import law as exactly
from tests.theorems.mutants import wrong
from tradeoff import loss_constraint as c1
from tradeoff import theorems
from tradeoff.problems.sequence import Sequence, answers
from tradeoff.theorems import sequences, verify
from tradeoff.theorems._expressions import log_share, over
from tradeoff.theorems.sequences import Answers, WithLogits
from tradeoff.tolerances import IDENTITY, agree

KEY = jax.random.key(6)
SIZES = [(2, 5), (3, 4), (3, 3)]


class Enumerated:
    """One prompt, both laws over all K^T answers in 50 digits, and the best policy over answers: no posterior anywhere."""

    def __init__(self, tokens, length, lam, seed):
        rng = np.random.default_rng(seed)
        nodes = (tokens**length - 1) // (tokens - 1)
        trees = rng.dirichlet(np.ones(tokens), size=(2, 1, nodes))
        trees[:, :, rng.random(nodes) < 0.3] = trees[:1, :, :1]  # after some prefixes the two agree
        self.instance = Answers(
            Sequence(to.World(*(to.DataLaw([1.0], answers(tree)) for tree in trees)), tokens), jnp.float64(lam)
        )
        world = self.instance.world
        every = list(itertools.product(range(tokens), repeat=length))
        self.tokens, self.length, self.lam = tokens, length, mpf(lam)
        self.s, self.f = (
            dict(zip(every, exactly(np.asarray(law.P[0])), strict=True)) for law in (world.safety, world.capability)
        )
        m = 1 + self.lam
        self.best = {y: (self.f[y] + self.lam * self.s[y]) / m for y in every}

    def of(self, law, prefix):
        """Probability of a prefix."""
        return sum(P for y, P in law.items() if y[: len(prefix)] == prefix)

    def next_token(self, law, prefix):
        here = self.of(law, prefix)
        return [self.of(law, (*prefix, y)) / here for y in range(self.tokens)]

    def weight(self, prefix):
        f, s = self.of(self.f, prefix), self.of(self.s, prefix)
        return f / (f + self.lam * s)

    def prefixes(self, t):
        return itertools.product(range(self.tokens), repeat=t)

    def lost(self, t):
        """What safety loses at position t+1."""
        return sum(
            self.of(self.s, prefix) * kl(self.next_token(self.s, prefix), self.next_token(self.best, prefix))
            for prefix in self.prefixes(t)
        )


@pytest.fixture(scope="module", params=[(2, 5, 0.3, 0), (3, 4, 4.0, 1), (3, 3, 30.0, 2)], ids=str)
def enumerated(request):
    return Enumerated(*request.param)


def test_the_best_policy_over_answers_is_the_posterior_mixture_token_by_token(enumerated):
    data = enumerated.instance.problem.next_token
    mixture, task, _ = sequences._posterior_mixture(data, enumerated.instance.lam)
    place = 0
    for t in range(enumerated.length):
        for prefix in enumerated.prefixes(t):
            best = enumerated.next_token(enumerated.best, prefix)
            w = enumerated.weight(prefix)
            laws = (enumerated.next_token(law, prefix) for law in (enumerated.f, enumerated.s))
            for y, (f, s) in enumerate(zip(*laws, strict=True)):
                assert agree(float(w * f + (1 - w) * s), float(best[y]), IDENTITY)
                assert agree(float(mixture[place, y]), float(best[y]), IDENTITY)
            assert agree(float(task[place, 0]), float(w), IDENTITY)
            place += 1


def test_t11a_adds_up(enumerated):
    lost = [enumerated.lost(t) for t in range(enumerated.length)]
    total = sum(P * log(P / enumerated.best[y]) for y, P in enumerated.s.items())
    apart = sum(abs(enumerated.s[y] - enumerated.f[y]) for y in enumerated.s) / 2
    cap = log(1 + 1 / enumerated.lam)
    most = max(tau * sum(1 for g in lost if g >= tau) for tau in lost)
    left, right = once(theorems.get("T11a").sides)(enumerated.instance)
    for ours, exact in zip(
        [*left, *right], [sum(lost), total, apart * cap, most, total, apart * cap, cap, cap], strict=True
    ):
        assert agree(float(ours), float(exact), IDENTITY)
    assert total <= apart * cap <= cap
    assert most <= cap


def test_t11b_holds_after_every_prefix(enumerated):
    on_average = [mpf(0)] * (enumerated.length + 1)
    for t in range(enumerated.length + 1):
        for prefix in enumerated.prefixes(t):
            w, chance = enumerated.weight(prefix), enumerated.of(enumerated.s, prefix)
            on_average[t] += chance * w
            if t == enumerated.length:
                continue
            P_s, P_f, best = (
                enumerated.next_token(law, prefix) for law in (enumerated.s, enumerated.f, enumerated.best)
            )
            chi = sum((s - f) ** 2 / b for s, f, b in zip(P_s, P_f, best, strict=True))
            after = sum(s * enumerated.weight((*prefix, y)) for y, s in enumerate(P_s))
            assert agree(float(after), float(w * (1 - w * (1 - w) * chi)), IDENTITY)
            assert after <= w * (1 + mpf(IDENTITY.relative))
    assert all(later <= now * (1 + mpf(IDENTITY.relative)) for now, later in itertools.pairwise(on_average))
    left, right = once(theorems.get("T11b").sides)(enumerated.instance)
    steepest = max(later / now for now, later in itertools.pairwise(on_average))
    for ours, exact in zip([*left[2:], right[3]], [steepest, on_average[-1], on_average[0]], strict=True):
        assert agree(float(ours), float(exact), IDENTITY)


@pytest.mark.parametrize("name", ["T11", "T11a", "T11b"])
@pytest.mark.parametrize(("tokens", "length"), SIZES)
def test_it_holds_for_longer_answers_and_several_prompts(name, tokens, length):
    """Families have three tokens of three kinds; the theory has any number."""
    rng = np.random.default_rng(tokens + 10 * length)
    nodes = (tokens**length - 1) // (tokens - 1)
    laws = [
        to.DataLaw(rng.dirichlet(np.ones(3)), answers(rng.dirichlet(np.full(tokens, 0.4), size=(3, nodes))))
        for _ in range(3 if name == "T11" else 2)
    ]
    problem, lam = Sequence(to.World(*laws), tokens), jnp.float64(0.6)
    logits = jnp.asarray(rng.normal(size=(3 * nodes, tokens)))
    claim = theorems.get(name)
    sides = once(claim.at)(WithLogits(problem, lam, logits) if name == "T11" else Answers(problem, lam))
    assert not claim.violations(sides).any(), sides


def test_longer_answers_come_up_to_the_cap_and_never_pass_it():
    """Two biased coins: the longer the answer, the better it tells task from safety, and the first tokens pay for it."""
    lam, totals = 0.5, []
    for length in (1, 2, 4, 8):
        nodes = 2**length - 1
        safe, task = (to.DataLaw([1.0], answers([[[p, 1 - p]] * nodes])) for p in (0.9, 0.2))
        problem = Sequence(to.World(safe, task), 2)
        totals.append(float(c1.gaps(problem.world, lam).safety))
    cap = float(jnp.log1p(1 / lam))
    assert all(one < other < cap for one, other in itertools.pairwise(totals))
    assert cap - totals[-1] < (cap - totals[0]) / 10
    best, _, _ = sequences._posterior_mixture(problem.next_token, jnp.float64(lam))
    lost = problem.gaps_by_position(jnp.log(best)).safety
    assert jnp.all(jnp.diff(lost) < 0)
    assert jnp.sum(lost[:2]) > jnp.sum(lost[2:])


# --- wrong versions ---------------------------------------------------------------------------------------------


def slip(name, part, change, relation="<="):
    """One inequality of a claim, changed: (left, right, instance) -> (left, right)."""

    def sides(instance):
        left, right = (side[part] for side in theorems.get(name).sides(instance))
        return change(left, right, instance)

    return lambda: wrong(name, "a slip", sides, relation)


def first_weight_for_all(i):
    """The weight of the prompt in the place of that of the prefix."""
    data, best = i.problem.next_token, i.problem.token_laws(jnp.exp(c1.optimal_policy(i.problem.world, i.lam)))
    prompts = jnp.stack(c1.mixture_weights(i.problem.world, i.lam))
    task, safety = jnp.repeat(prompts, best.shape[0] // prompts.shape[1], axis=1)[:, :, None]
    mixture = task * data.capability.P + safety * data.training_safety.P
    reached = (data.capability.p + data.training_safety.p > 0)[:, None]
    return 1 + jnp.max(jnp.where(reached, over(jnp.abs(best - mixture), best + mixture), 0)), jnp.ones(())


def first_tokens_only(i):
    """TV of the first token in the place of that of whole answers."""
    data, share = i.problem.next_token, log_share(i.world.safety.p, i.world.capability.p / i.lam)
    prompts = share.shape[0]
    return c1.gaps(i.world, i.lam).safety, jnp.sum(share * data.conflict.reshape(prompts, -1)[:, 0])


def predicted(i, change):
    """E[w] after one token, by a formula of w, 1-w and χ, against E[w] of T11b, both on average over the first tokens."""
    data = i.problem.next_token
    mixture, task, safety = sequences._posterior_mixture(data, i.lam)
    chi = jnp.sum(over((data.safety.P - data.capability.P) ** 2, mixture), axis=-1)
    w, v = (jnp.where(data.safety.p > 0, weight[:, 0], 0) for weight in (task, safety))
    by_formula = i.problem.by_position(data.safety, change(w, v, chi))
    _, later = now_and_later(i)
    return later[0], by_formula[0]


def now_and_later(i):
    """The weight at the first and at the second position, on average."""
    data = i.problem.next_token
    task = c1.mixture_weights(data, i.lam)[0]
    now = i.problem.by_position(data.safety, task)
    return now, now[1:]


WRONG = {
    "T11: the prompt's weight everywhere": lambda: wrong("T11", "no posterior", first_weight_for_all, "=="),
    "T11: the average for the sum": slip("T11", 1, lambda left, right, i: (left / i.problem.length, right), "=="),
    "T11: some policy is better": slip("T11", 2, lambda left, right, _: (1.01 * left, right)),
    "T11a: the average for the sum": slip("T11a", 0, lambda left, right, i: (left / i.problem.length, right), "=="),
    "T11a: first tokens only": lambda: wrong("T11a", "TV of first tokens", first_tokens_only),
    "T11a: half of TV": slip("T11a", 1, lambda left, right, _: (left, 0.5 * right)),
    "T11a: the cap per token": slip("T11a", 2, lambda left, right, i: (left, right / i.problem.length)),
    "T11a: λ upside down": slip(
        "T11a", 1, lambda left, _, i: (left, jnp.sum(log_share(i.world.safety.p, i.lam * i.world.capability.p)))
    ),
    "T11a: every position as bad as the worst": slip("T11a", 3, lambda left, right, i: (i.problem.length * left, right)),
    "T11b: formula, +χ": lambda: wrong("T11b", "sign", lambda i: predicted(i, lambda w, v, c: w * (1 + w * v * c)), "=="),
    "T11b: formula, no 1-w": lambda: wrong("T11b", "dropped", lambda i: predicted(i, lambda w, _v, c: w * (1 - w * c)), "=="),
    "T11b: formula, 1-w for w": lambda: wrong("T11b", "swapped", lambda i: predicted(i, lambda w, v, c: w * (1 - v * c)), "=="),
    "T11b: a safe answer switches it on": slip("T11b", 3, lambda left, right, _: (right, left)),
    "T11b: every token halves it": slip("T11b", 1, lambda left, right, _: (left, 0.5 * right)),
}  # fmt: skip


def test_the_formula_that_the_slips_change_is_right():
    """A control for the three that follow: unchanged, it is T11b."""
    claim = wrong("T11b", "right", lambda i: predicted(i, lambda w, v, c: w * (1 - w * v * c)), "==")
    assert verify(claim, KEY, 2_000).holds


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_version_is_rejected(name):
    assert not verify(WRONG[name](), KEY, 2_000).holds
