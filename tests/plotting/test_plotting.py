"""What is drawn is what the functions of the package say, and what cannot be drawn is refused."""

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import tradeoff as to
from tradeoff import plotting
from tradeoff.landscape import Line, Plane


@pytest.fixture
def ax():
    return Figure().subplots()


def drawn(ax, number=0):
    return [np.asarray(values) for values in ax.lines[number].get_data()]


def test_a_world_its_frontier_and_its_gaps_are_drawn_as_one_curve(ax):
    world = to.worlds.over_penalised()
    front = to.frontier.exact(world, plotting.axes.PENALTIES)
    for of in (world, front, to.Gaps(front.safety_gap, front.capability_gap)):
        plotting.frontier(ax, of)
    plotting.frontier(ax, front.safety_gap, front.capability_gap)
    assert len(ax.lines) == 4
    for number in range(4):
        np.testing.assert_array_equal(drawn(ax, number), [front.safety_gap, front.capability_gap])
    # The frontier is that of the true safety data: with the bad proxy the sweep is another curve.
    swept = to.loss_constraint.gaps(world, front.lam)
    assert np.abs(np.asarray(swept.capability) - drawn(ax)[1]).max() > 0.1


@pytest.mark.parametrize("gap", ["safety", "capability", "proxy"])
def test_gaps_of_a_world_are_those_of_its_proxy(ax, gap):
    world = to.worlds.over_penalised()
    plotting.gap_against_penalty(ax, world, gap)
    lam, shown = drawn(ax)
    exact = getattr(to, f"{gap}_gap")
    for i in (0, 80, 160):
        np.testing.assert_allclose(shown[i], exact(world, to.loss_constraint.optimal_policy(world, lam[i])), atol=1e-12)
    assert ax.get_xscale() == "log"


def test_what_is_shaded_is_the_fundamental_limit(ax):
    world = to.worlds.golden()
    plotting.limit(ax, world)
    corners = ax.collections[0].get_paths()[0].vertices
    above = corners[corners[:, 1] > 0]
    np.testing.assert_allclose(above[:, 1], to.frontier.lower_limit(world, above[:, 0]), rtol=1e-9)


def test_many_lines_are_drawn_as_their_mean_and_range(ax):
    t = jnp.array([0.0, 1.0, 2.0])
    lines = [Line(t, to.Gaps(k * t, 3 - k * t)) for k in (1.0, 2.0, 6.0)]
    plotting.landscape(ax, lines, "random")
    np.testing.assert_allclose(drawn(ax, 0)[1], 3 * t)
    np.testing.assert_allclose(drawn(ax, 1)[1], 3 - 3 * t)
    assert [line.get_label() for line in ax.lines] == ["safety gap, random", "capability gap, random"]
    extent = ax.collections[0].get_paths()[0].get_extents()
    assert (extent.ymin, extent.ymax) == (0, 12)


def test_a_plane_is_shaded_by_safety_and_lined_by_capability(ax):
    x, y = np.linspace(-1, 1, 21), np.linspace(-2, 2, 31)
    safety, capability = (x**2 + 0 * y[:, None], (x - 1) ** 2 + y[:, None] ** 2)
    plotting.landscape(ax, Plane(*map(jnp.asarray, (x, y)), to.Gaps(*map(jnp.asarray, (safety, capability)))))
    shades, lines = ax.collections[0], ax.collections[1]
    assert shades.levels[[0, -1]].tolist() == [0, 1]
    np.testing.assert_allclose(lines.levels, np.quantile(capability, [0.02, 0.1, 0.3, 0.6]))
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        across, up = path.vertices.T
        np.testing.assert_allclose((across - 1) ** 2 + up**2, level, atol=0.02)


def test_a_plane_on_which_nothing_changes_is_drawn(ax):
    flat = jnp.zeros((3, 4))
    plotting.landscape(ax, Plane(jnp.arange(4.0), jnp.arange(3.0), to.Gaps(flat, flat)))
    assert len(ax.collections) == 1


def test_a_league_is_ordered_by_medians_and_a_strategy_that_never_arrives_gets_a_cross(ax):
    rows = {"far": [3.0, 1.0, 2.0, np.nan], "never": [np.nan, np.inf], "near": [0.5, 0.25, 0.0]}
    plotting.league(ax, rows, kinds={"near": "is given more", "far": "sees the task only", "never": "is given more"})
    assert [label.get_text() for label in ax.get_yticklabels()] == ["near", "far", "never"]
    bottom, top = ax.get_ylim()
    assert bottom > top  # the first is on top
    (near, bars), (far, _) = ((each.lines[0], each.lines[2][0]) for each in ax.containers)
    assert [near.get_xdata().tolist(), near.get_ydata().tolist()] == [[0.25], [0]]
    assert [far.get_xdata().tolist(), far.get_ydata().tolist()] == [[2.0], [1]]
    np.testing.assert_allclose(bars.get_segments()[0], [[0.125, 0], [0.375, 0]])
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert [line.get_ydata() for line in crosses] == [[2]]
    assert near.get_marker() != far.get_marker()


def test_axes_that_share_an_order_share_their_rows(ax):
    plotting.league(ax, {"b": [1.0]}, order=["a", "b"])
    assert ax.containers[0].lines[0].get_ydata().tolist() == [1]


def test_the_four_curves_of_a_landscape_differ_without_colours(ax):
    line = Line(jnp.arange(2.0), to.Gaps(jnp.zeros(2), jnp.ones(2)))
    plotting.landscape(ax, line, "fine-tuning")
    plotting.landscape(ax, [line, line], "random")
    assert len({curve.get_linestyle() for curve in ax.lines}) == 4


def test_the_style_sets_back_what_it_set_and_nothing_else():
    """A notebook turns interactive at its first figure; were that set back, it would show no other."""
    with matplotlib.rc_context():
        before = dict(matplotlib.rcParams)
        with plotting.style():
            assert matplotlib.rcParams["font.size"] == 9 != before["font.size"]
            matplotlib.rcParams["interactive"] = True
        assert dict(matplotlib.rcParams) == {**before, "interactive": True}


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda ax: plotting.frontier(ax, [0.1, 0.2]), "come without their capability gaps"),
        (lambda ax: plotting.frontier(ax, [0.1, 0.2], [0.3]), r"have shape \(2,\) and capability gaps \(1,\)"),
        (lambda ax: plotting.gap_against_penalty(ax, [1.0, 2.0]), "come without their gaps"),
        (lambda ax: plotting.gap_against_penalty(ax, to.worlds.golden(), "safely"), "must be one of 'safety'"),
        (lambda ax: plotting.verdicts(ax, []), "was given none"),
        (lambda ax: plotting.landscape(ax, []), "was given 0 lines"),
        (
            lambda ax: plotting.landscape(
                ax, [Line(jnp.arange(2.0) + k, to.Gaps(jnp.zeros(2), jnp.zeros(2))) for k in (0.0, 1.0)]
            ),
            "2 lines at different distances",
        ),
        (lambda ax: plotting.league(ax, {}), "was given no strategy"),
        (lambda ax: plotting.league(ax, {"plain": [[1.0]]}), r"distances of plain have shape \(1, 1\)"),
        (lambda ax: plotting.league(ax, {"plain": [1.0]}, order=["ema"]), "plain have distances and no place"),
    ],
)
def test_what_cannot_be_drawn_is_refused(ax, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(ax)
