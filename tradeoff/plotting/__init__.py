"""Axes-level plots: each function draws on the axes that it is given, of a world of your own or of arrays."""

from tradeoff.plotting.axes import CAPABILITY as CAPABILITY
from tradeoff.plotting.axes import SAFETY as SAFETY
from tradeoff.plotting.axes import errors as errors
from tradeoff.plotting.axes import flow as flow
from tradeoff.plotting.axes import frontier as frontier
from tradeoff.plotting.axes import gap_against_penalty as gap_against_penalty
from tradeoff.plotting.axes import limit as limit
from tradeoff.plotting.axes import ratios as ratios
from tradeoff.plotting.rows import league as league
from tradeoff.plotting.rows import verdicts as verdicts
from tradeoff.plotting.style import COLOURS as COLOURS
from tradeoff.plotting.style import LINES as LINES
from tradeoff.plotting.style import save as save
from tradeoff.plotting.style import style as style
from tradeoff.plotting.surfaces import landscape as landscape
