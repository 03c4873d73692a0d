"""The four drawings of the page: made once, then only their data change."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, DataRange1d, HoverTool
from bokeh.plotting import figure

from tradeoff.explorer.answers import PENALTIES, RADII, Answer
from tradeoff.plotting import COLOURS

BLUE, ORANGE, GREEN, PINK, AMBER, SKY = COLOURS[:6]
ON_DARK = {BLUE: SKY, ORANGE: AMBER}
"""What takes the place of the darker colours on a dark page."""
GREY = "#888888"
TOOLS = "box_zoom,reset,save"
SAFETY, CAPABILITY = "safety gap (nats)", "capability gap (nats)"


@dataclass(frozen=True)
class Charts:
    """The drawings, and the source of each of their lines by name."""

    plane: Any
    against: Any
    in_time: Any
    case_two: Any
    sources: dict[str, Any]

    def show(self, shown: Answer) -> None:
        """Let the drawings show another answer."""
        for name, columns in _columns(shown).items():
            self.sources[name].data = columns

    def colour(self, dark: bool) -> None:
        """Take the colours for a dark or a light page."""
        now = ON_DARK if dark else {light: colour for colour, light in ON_DARK.items()}
        for drawing in (self.plane, self.against, self.in_time, self.case_two):
            for renderer in drawing.renderers:
                glyph = renderer.glyph
                if getattr(glyph, "line_color", None) in now:
                    glyph.line_color = now[glyph.line_color]


def charts(shown: Answer) -> Charts:
    """The drawings of an answer."""
    sources: dict[str, Any] = {
        name: ColumnDataSource(dict(columns), name=name) for name, columns in _columns(shown).items()
    }
    return Charts(_plane(sources), _against(sources), _in_time(sources), _case_two(sources), sources)


def _columns(shown: Answer) -> dict[str, dict[str, Any]]:
    """The columns of every line."""
    curves, point, ball = shown.curves, shown.point.gaps, shown.ball.gaps
    exact, trained = curves.exact, curves.trained
    later = slice(1, None)  # an axis in log t has no place for the start
    return {
        "curves": {
            "penalty": PENALTIES,
            "exact_safety": exact.safety,
            "exact_capability": exact.capability,
            "safety": trained.safety,
            "capability": trained.capability,
            "limit": curves.limit,
            "floor": curves.floor,
            "ceiling": curves.ceiling,
        },
        "flow": {"safety": shown.flow.safety, "capability": shown.flow.capability},
        "in_time": {
            "time": shown.times[later],
            "safety": shown.flow.safety[later],
            "capability": shown.flow.capability[later],
            "end_safety": np.full(len(shown.times) - 1, point.safety),
            "end_capability": np.full(len(shown.times) - 1, point.capability),
        },
        "point": {
            "penalty": np.array([shown.view.penalty]),
            "safety": np.array([point.safety]),
            "capability": np.array([point.capability]),
        },
        "best": {
            "penalty": PENALTIES[[shown.best]],
            "safety": trained.safety[[shown.best]],
        },
        "ball": {"radius": RADII, "safety": ball.safety, "capability": ball.capability},
        "pair": {
            "penalty": PENALTIES,
            "safety": shown.pair_frontier.safety,
            "capability": shown.pair_frontier.capability,
        },
        "at_radius": {
            "radius": np.array([shown.view.radius]),
            "safety": np.array([shown.at_radius.gaps.safety]),
            "capability": np.array([shown.at_radius.gaps.capability]),
        },
    }


def _figure(x_label: str, y_label: str, **options: Any) -> Any:
    """An empty drawing, whose axes begin at zero unless they are logarithmic."""
    made: Any = figure(
        height=340,
        sizing_mode="stretch_width",
        tools=TOOLS,
        x_axis_label=x_label,
        y_axis_label=y_label,
        y_range=DataRange1d(start=0, default_span=0.01),
        **options,
    )
    if "x_axis_type" not in options:
        made.x_range = DataRange1d(start=0, default_span=0.01)
    made.toolbar.logo = None
    made.toolbar.autohide = True
    return made


def _line(made: Any, source: Any, x: str, y: str, colour: str, dash: str = "solid", **options: Any) -> None:
    """A line; `legend_label` names it, and the name "tip" lets the pointer read it."""
    width = 2.5 if dash == "solid" else 2
    made.line(x, y, source=source, line_color=colour, line_width=width, line_dash=dash, **options)


def _dot(made: Any, source: Any, x: str, y: str) -> None:
    """Where the view stands."""
    made.scatter(x, y, source=source, size=12, fill_color=GREEN, line_color="white", line_width=2)


def _finish(made: Any, corner: str, **tips: str) -> Any:
    """Put the legend in a corner that is mostly free, and say the numbers under the pointer."""
    legend = made.legend[0]
    legend.location, legend.click_policy = corner, "hide"
    legend.background_fill_alpha, legend.border_line_alpha = 0.6, 0
    legend.padding, legend.spacing = 4, 0
    named = [renderer for renderer in made.renderers if renderer.name == "tip"]
    made.add_tools(HoverTool(renderers=named, tooltips=[(name, f"@{column}") for name, column in tips.items()]))
    return made


def _plane(sources: dict[str, Any]) -> Any:
    made, curves, flow = _figure(SAFETY, CAPABILITY), sources["curves"], sources["flow"]
    shade = {"fill_color": GREY, "fill_alpha": 0.35, "legend_label": "impossible (T8)"}
    made.varea("exact_safety", 0, "limit", source=curves, **shade)
    _line(made, curves, "exact_safety", "exact_capability", BLUE, legend_label="exact frontier")
    _line(made, curves, "safety", "capability", ORANGE, "dashed", legend_label="with the proxy", name="tip")
    _line(made, flow, "safety", "capability", GREEN, legend_label="gradient flow")
    made.scatter("safety", "capability", source=flow, color=GREEN, size=4)
    _dot(made, sources["point"], "safety", "capability")
    return _finish(made, "top_right", λ="penalty", safety="safety", capability="capability")


def _against(sources: dict[str, Any]) -> Any:
    made, curves = _figure("penalty λ", SAFETY, x_axis_type="log"), sources["curves"]
    shade = {"fill_color": GREY, "fill_alpha": 0.2, "legend_label": "bounds"}
    made.varea("penalty", "floor", "ceiling", source=curves, **shade)
    _line(made, curves, "penalty", "exact_safety", BLUE, legend_label="exact proxy")
    _line(made, curves, "penalty", "safety", ORANGE, "dashed", legend_label="with the proxy", name="tip")
    star = {"marker": "star", "size": 14, "color": PINK, "legend_label": "least drawn"}
    made.scatter("penalty", "safety", source=sources["best"], **star)
    _dot(made, sources["point"], "penalty", "safety")
    return _finish(made, "top_right", λ="penalty", safety="safety", exact="exact_safety")


def _in_time(sources: dict[str, Any]) -> Any:
    made, source = _figure("time of the flow", "gap (nats)", x_axis_type="log"), sources["in_time"]
    for gap, colour, dash in (("safety", GREEN, "solid"), ("capability", PINK, "dashed")):
        _line(made, source, "time", f"end_{gap}", colour, "dotted")
        _line(made, source, "time", gap, colour, dash, legend_label=f"{gap} gap", name="tip")
    return _finish(made, "center_right", time="time", safety="safety", capability="capability")


def _case_two(sources: dict[str, Any]) -> Any:
    made = _figure("safety gap (loss)", "capability gap (loss)")
    _line(made, sources["pair"], "safety", "capability", BLUE, legend_label="Case I frontier")
    _line(made, sources["ball"], "safety", "capability", ORANGE, "dashed", legend_label="ball", name="tip")
    _dot(made, sources["at_radius"], "safety", "capability")
    return _finish(made, "top_right", ε="radius", safety="safety", capability="capability")
