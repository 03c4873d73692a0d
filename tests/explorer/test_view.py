"""What the explorer shows is what the package's own functions give, and a link brings it back."""

import dataclasses

import jax
import numpy as np
import pytest

import tradeoff as to
from experiments import e1_gap_against_penalty as e1
from experiments import e2_context_overlap as e2
from experiments import e3_parameter_constraint as e3
from tradeoff import loss_constraint, parameter_constraint, studies
from tradeoff.explorer import PRESETS, View, answer, numbers
from tradeoff.explorer.answers import PENALTIES
from tradeoff.explorer.downloads import written
from tradeoff.explorer.view import pair, world_of
from tradeoff.tolerances import BOUND, EXACT, FLOW, IDENTITY

VIEW = View(overlap=0.3, conflict=0.8, similarity=0.6, log10_penalty=0.4, radius=0.21)


def close(a, b, tolerance=IDENTITY):
    return np.allclose(a, b, rtol=tolerance.relative, atol=tolerance.absolute)


@pytest.fixture(scope="module")
def shown():
    return answer(VIEW)


@pytest.mark.parametrize("view", [*PRESETS.values(), View(overlap=1 / 3, log10_penalty=-0.1234567890123456)])
def test_a_link_brings_every_view_back_to_the_last_bit(view):
    assert View.from_link(view.link()) == view
    assert View.from_link(dataclasses.replace(view, radius=0.77).link()) != view


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ("?overlap=7", r"overlap=7.0; overlap must lie in \[0, 1\]"),
        ("?overlap=nan", "overlap=nan"),
        ("?overlap=much", "overlap='much', which is not a number"),
        ("?contexts=8.5", "contexts='8.5', which is not a whole number"),
        ("?contexts=100000", r"contexts must lie in \[2, 64\]"),
        ("?world=mars", "give one of random, one-conflict, golden"),
        ("?colour=red", "'colour'; it may name each of world, seed"),
        ("?seed=1&seed=2", "'seed'"),
    ],
)
def test_a_bad_link_is_refused_with_the_remedy(link, says):
    with pytest.raises(ValueError, match=says) as refused:
        View.from_link(link)
    assert "Copy the link again" in str(refused.value)


def test_curves_and_numbers_are_those_of_the_package(shown):
    knobs = {"overlap": VIEW.overlap, "conflict": VIEW.conflict, "similarity": VIEW.similarity}
    world = to.worlds.random(jax.random.key(VIEW.seed), VIEW.contexts, VIEW.responses, **knobs)
    front, trained = to.frontier.exact(world, PENALTIES), loss_constraint.gaps(world, PENALTIES)
    assert close(shown.curves.exact.safety, front.safety_gap)
    assert close(shown.curves.exact.capability, front.capability_gap)
    assert close(shown.curves.trained.safety, trained.safety)
    assert close(shown.curves.trained.capability, trained.capability)
    assert close(shown.curves.limit, to.frontier.lower_limit(world, front.safety_gap))
    at, ball = loss_constraint.gaps(world, VIEW.penalty), parameter_constraint.solve(pair(), VIEW.radius)
    rows = {name: value for name, value, _ in numbers(shown)}
    assert close(rows["safety gap"], at.safety)
    assert close(rows["capability gap"], at.capability)
    assert close(rows["distance to the frontier"], front.distance(at))
    assert close(rows["mismatch of the proxy Φ"], world.proxy_mismatch)
    assert close(rows["safety gap in the ball"], ball.gaps.safety, EXACT)
    # A world one step of the slider away is told apart.
    beside = to.worlds.random(jax.random.key(VIEW.seed), VIEW.contexts, VIEW.responses, **(knobs | {"overlap": 0.31}))
    assert not close(shown.curves.exact.safety, to.frontier.exact(beside, PENALTIES).safety_gap)


def test_the_flow_runs_down_from_the_aligned_policy_to_the_optimum(shown):
    assert close(shown.flow.safety[0], 0)
    assert np.all(np.diff(shown.times) > 0)
    assert abs(float(shown.flow.safety[-1] - shown.point.gaps.safety)) < FLOW.absolute
    assert abs(float(shown.flow.capability[-1] - shown.point.gaps.capability)) < FLOW.absolute
    assert abs(float(shown.flow.capability[0] - shown.point.gaps.capability)) > FLOW.absolute


@pytest.mark.parametrize("view", [VIEW, View(similarity=1.0)])
def test_the_bounds_hold_the_safety_gap_between_them(view):
    curves = answer(view).curves
    gap, slack = curves.trained.safety, BOUND.absolute + BOUND.relative * curves.trained.safety
    assert np.all(curves.floor <= gap + slack)
    assert np.all(gap <= curves.ceiling + slack)
    assert np.max(curves.floor) > 0
    # Neither bound is so loose that it would hold anything.
    assert np.any(2 * gap > curves.ceiling)


def test_the_least_drawn_gap_is_next_to_the_best_penalty():
    shown = answer(View(world="over-penalised"))
    best = loss_constraint.best_penalty(world_of(shown.view))
    spacing = PENALTIES[1] / PENALTIES[0]
    assert best / spacing <= PENALTIES[shown.best] <= best * spacing


def test_presets_are_the_experiments_worlds():
    near, far, low, high = (
        PRESETS[name] for name in ("E1: near proxy", "E1: far proxy", "E2: low overlap", "E2: high overlap")
    )
    for view, settings in ((near, e1.Settings()), (far, e1.Settings()), (low, e2.Settings()), (high, e2.Settings())):
        for name in ("seed", "contexts", "responses", "conflict"):
            assert getattr(view, name) == getattr(settings, name)
    assert (near.similarity, far.similarity) == (e1.Settings().near, e1.Settings().far)
    assert (low.overlap, high.overlap) == (e2.Settings().overlaps[0], e2.Settings().overlaps[-1])
    for ours, theirs in zip(jax.tree.leaves(pair()), jax.tree.leaves(e3.pair(e3.Settings())), strict=True):
        assert np.array_equal(ours, theirs)


def test_data_and_figure_are_files_that_can_be_read_and_repeated(shown, tmp_path):
    (tmp_path / "view.nc").write_bytes(written(shown, "nc"))
    data = studies.load(tmp_path / "view.nc")
    assert data is not None
    assert np.array_equal(data.safety_gap, shown.curves.trained.safety)
    assert '"overlap": 0.3' in data.attrs["settings"]
    assert written(shown, "svg") == written(shown, "svg") != written(answer(View()), "svg")
    assert written(shown, "png").startswith(b"\x89PNG")
