"""The explorer: what a page with sliders shows, and the page itself.

A `View` says where the sliders stand, `answer` computes everything that is shown of it with the package's own functions,
and `to_dataset` and `draw` make the data and the figure that can be downloaded. None of these needs Panel;
`tradeoff.explorer.server` does.
"""

from tradeoff.explorer.answers import Answer as Answer
from tradeoff.explorer.answers import answer as answer
from tradeoff.explorer.answers import numbers as numbers
from tradeoff.explorer.downloads import draw as draw
from tradeoff.explorer.downloads import to_dataset as to_dataset
from tradeoff.explorer.presets import PRESETS as PRESETS
from tradeoff.explorer.view import View as View
