"""What is to be learned and what is to be kept: data laws, worlds, and generators of both."""

from tradeoff.worlds.files import read as read
from tradeoff.worlds.files import write as write
from tradeoff.worlds.generate import golden as golden
from tradeoff.worlds.generate import late_minimum as late_minimum
from tradeoff.worlds.generate import one_conflict as one_conflict
from tradeoff.worlds.generate import over_penalised as over_penalised
from tradeoff.worlds.generate import random as random
from tradeoff.worlds.generate import two_minima as two_minima
from tradeoff.worlds.grammar import grammar as grammar
from tradeoff.worlds.grammar import word_overlap as word_overlap
from tradeoff.worlds.text import from_texts as from_texts
from tradeoff.worlds.text import requests as requests
from tradeoff.worlds.world import DataLaw as DataLaw
from tradeoff.worlds.world import World as World
