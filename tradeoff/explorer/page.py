"""The page: sliders on the left, drawings and numbers on the right, a link and downloads below the sliders."""

import functools
import io
from dataclasses import asdict, replace
from typing import Any

import panel as pn
import panel_material_ui as pmui
from bokeh.models import CustomJS

from tradeoff.explorer.answers import Answer, answer, numbers
from tradeoff.explorer.charts import charts
from tradeoff.explorer.downloads import written
from tradeoff.explorer.presets import PRESETS
from tradeoff.explorer.view import KNOBS, RANGES, View
from tradeoff.plotting import COLOURS

TOGETHER = 10
"""Milliseconds in which movements are answered together, so that a dragged slider leaves no queue behind."""
AT_REST = 400
"""Milliseconds after the last movement when the address changes: not every stop of a drag belongs in the history."""
SLIDERS = ("overlap", "conflict", "similarity", "log10_penalty", "radius")
SIZES = ("contexts", "responses", "seed")
TITLES = {
    "plane": "The two gaps",
    "against": "Safety gap against the penalty",
    "in_time": "The flow, down to its optimum",
    "case_two": "Case II: a ball around the aligned parameters",
}
LABELS = {
    "world": "World",
    "overlap": "overlap ρ",
    "conflict": "conflict c",
    "similarity": "similarity σ of the proxy",
    "radius": "radius ε",
    "contexts": "contexts",
    "responses": "responses",
    "seed": "seed",
}
THEME = {
    "light": {"palette": {"primary": {"main": COLOURS[0]}}},
    "dark": {
        "palette": {"primary": {"main": COLOURS[5]}},
        "components": {"MuiAppBar": {"styleOverrides": {"root": {"backgroundColor": "#12344a", "color": "white"}}}},
    },
}
AREAS = """
:host {
  display: grid !important; gap: 14px; padding: 14px; box-sizing: border-box; width: 100%;
  max-height: none !important; grid-auto-rows: max-content; align-items: start;
  grid-template-columns: minmax(0, 1fr);
  grid-template-areas: "alert" "plane" "controls" "against" "numbers" "in_time" "case_two" "reading";
}
@media (min-width: 760px) { :host {
  grid-template-columns: 290px minmax(0, 1fr);
  grid-template-areas: "alert alert" "controls plane" "controls against" "reading in_time" "reading case_two" ". numbers";
} }
@media (min-width: 1180px) { :host {
  grid-template-columns: 300px minmax(0, 1fr) minmax(0, 1fr);
  grid-template-areas: "alert alert alert" "controls plane against" "controls numbers in_time" "reading numbers case_two";
} }
"""
"""One column on a phone, where the sliders follow the drawing that they move; two or three where there is room."""
BACK = "window.addEventListener('popstate', () => window.location.reload())"
"""Panel writes the address and does not read it again: a page that is gone back to is opened anew."""
COPY = "navigator.clipboard.writeText(link.value)"
READING = """
The **exact frontier** is the best any policy of any kind can do (T7); the shaded corner is ruled out by a formula alone (T8).
Fine-tuning under a penalty λ ends on the **dashed** curve, where the penalty sees a proxy of the safety data; with the exact
proxy (σ = 1) it is the frontier. The **green** line is the gradient flow from the aligned policy to the optimum at λ. Penalties,
overlap, conflict and similarity move the first three drawings; the radius moves the fourth, Case II on two quadratic losses.
"""
FILLED: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": 0}
WIDE: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": (6, 8)}


class Explorer:
    """One visitor's page: the widgets, and the answer that they show."""

    def __init__(self) -> None:
        self.document: Any = pn.state.curdoc
        self.location: Any = pn.state.location
        self.alert = pmui.Alert(title="", severity="warning", visible=False, margin=0, styles={"grid-area": "alert"})
        self.answer: Answer = self._first()
        self.charts = charts(self.answer)
        self.widgets = _widgets()
        self.preset = pmui.Select(label="Preset", options=["", *PRESETS], value="", **WIDE)
        self.link = pmui.TextInput(label="Link to this view", **WIDE)
        self.numbers = pn.pane.HTML("", sizing_mode="stretch_width", margin=(0, 8, 8, 8))
        self._placing, self._due, self._address = False, False, None
        self._place(self.answer.view)
        self._show()
        for widget in self.widgets.values():
            widget.param.watch(self._moved, "value")
        self.preset.param.watch(self._chosen, "value")
        self.document.js_on_event("document_ready", CustomJS(code=BACK))

    def page(self) -> pmui.Page:
        """The whole page."""
        copy = pmui.Button(label="Copy link", icon="content_copy", variant="outlined", **WIDE)
        copy.js_on_click(args={"link": self.link}, code=COPY)
        files = [
            pmui.FileDownload(
                callback=functools.partial(self._file, ending),
                filename=f"tradeoff.{ending}",
                label=label,
                variant="outlined",
                **WIDE,
            )
            for label, ending in (("Data (netCDF)", "nc"), ("Figure (SVG)", "svg"), ("Figure (PNG)", "png"))
        ]
        w = self.widgets
        controls = pmui.Column(
            pmui.Row(self.preset, w["world"], **FILLED),
            *(w[name] for name in SLIDERS),
            pmui.Row(w["contexts"], w["responses"], **FILLED),
            w["seed"],
            self.link,
            copy,
            *files,
            **FILLED,
        )
        drawings = (
            _card(title, pn.pane.Bokeh(getattr(self.charts, name), **FILLED), name) for name, title in TITLES.items()
        )
        main = pn.Column(
            self.alert,
            _card("", controls, "controls"),
            *drawings,
            _card("Numbers", self.numbers, "numbers"),
            _card("Reading it", pmui.Typography(READING, margin=(0, 12, 12, 12)), "reading"),
            stylesheets=[AREAS],
            **FILLED,
        )
        page = pmui.Page(title="tradeoff explorer", main=[main], theme_config=THEME)
        page.param.watch(lambda event: self.charts.colour(event.new), "dark_theme")
        return page

    # --- from the address, and back -------------------------------------------------------------------------------

    def _first(self) -> Answer:
        """The answer to the link that the page was opened with, or to the plain view where it is no link."""
        try:
            view = View.from_link(self.location.search)
        except ValueError as error:
            self._say(str(error))
            view = View()
        return answer(view)

    def _write_address(self) -> None:
        self._address = None
        self.location.search = self.answer.view.link()

    # --- from the widgets -----------------------------------------------------------------------------------------

    def _chosen(self, event: Any) -> None:
        if event.new:
            self._go(PRESETS[event.new])

    def _moved(self, _: Any) -> None:
        """Answer soon, together with the movements that come meanwhile."""
        if self._placing or self._due:
            return
        self._due = True
        self.document.add_timeout_callback(self._answer_movements, TOGETHER)

    def _answer_movements(self) -> None:
        self._due = False
        at = self.answer.view
        # An emptied number field holds nothing, and a slider at its end a whole number.
        values = {
            name: type(getattr(at, name))(widget.value)
            for name, widget in self.widgets.items()
            if widget.value is not None
        }
        self._go(replace(at, **values))
        if PRESETS.get(self.preset.value) != self.answer.view:
            self.preset.value = ""

    def _go(self, view: View) -> None:
        """Show a view; what cannot be computed is said, and the last view stays."""
        if view == self.answer.view:
            return
        try:
            self.answer = answer(view)
        except (ValueError, RuntimeError) as error:
            self._say(str(error))
            return
        self.alert.visible = False
        self._place(view)
        self._show()
        if self._address is not None:
            self.document.remove_timeout_callback(self._address)
        self._address = self.document.add_timeout_callback(self._write_address, AT_REST)

    # --- to the page ----------------------------------------------------------------------------------------------

    def _place(self, view: View) -> None:
        """Put every widget where the view says, without an answer to each."""
        self._placing = True
        for name, value in asdict(view).items():
            self.widgets[name].value = value
        self._placing = False
        knobs = KNOBS[view.world]
        for name in SLIDERS[:3]:
            self.widgets[name].disabled = name not in knobs
        for name in SIZES:
            self.widgets[name].visible = view.world == "random"
        self.widgets["log10_penalty"].label = f"penalty λ = {view.penalty:.3g}"

    def _show(self) -> None:
        self.charts.show(self.answer)
        self.numbers.object = _table(self.answer)
        at = self.location
        self.link.value = f"{at.protocol}//{at.hostname}:{at.port}{at.pathname}{self.answer.view.link()}"

    def _say(self, message: str) -> None:
        self.alert.object, self.alert.visible = message, True

    def _file(self, ending: str) -> io.BytesIO:
        return io.BytesIO(written(self.answer, ending))


def _card(title: str, content: Any, area: str) -> pmui.Paper:
    """A titled sheet, and where on the page it lies."""
    heading = [pmui.Typography(title, variant="subtitle1", margin=(8, 12, 0, 12))] if title else []
    return pmui.Paper(*heading, content, elevation=2, styles={"grid-area": area}, **FILLED)


def _widgets() -> dict[str, Any]:
    """A widget for every field of a view."""
    made: dict[str, Any] = {"world": pmui.Select(label=LABELS["world"], options=list(KNOBS), **WIDE)}
    for name in SLIDERS:
        low, high = RANGES[name]
        hidden = {"show_value": False, "label": "penalty λ"} if name == "log10_penalty" else {"label": LABELS[name]}
        made[name] = pmui.FloatSlider(start=low, end=high, step=0.01, value=high, **hidden, **WIDE)
    for name in SIZES:
        low, high = (int(end) for end in RANGES[name])
        made[name] = pmui.IntInput(label=LABELS[name], start=low, end=high, value=high, **WIDE)
    return made


def _table(shown: Answer) -> str:
    """The numbers as a table."""
    rows = "".join(
        f'<tr><td>{name}</td><td class="value">{value:.6g}</td><td class="source">{source}</td></tr>'
        for name, value, source in numbers(shown)
    )
    style = (
        "table{width:100%;border-collapse:collapse;font-size:14px}td{padding:3px 4px;border-bottom:1px solid #8884}"
        ".value{text-align:right;font-variant-numeric:tabular-nums}.source{text-align:right;opacity:.65;font-size:12px}"
    )
    return f"<style>{style}</style><table>{rows}</table>"
