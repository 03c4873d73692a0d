"""Results that can be trusted later: labelled data, what made them, and files that are whole or absent."""

from tradeoff._files import write_atomically as write_atomically
from tradeoff.studies.comparison import changed_origins as changed_origins
from tradeoff.studies.comparison import differences as differences
from tradeoff.studies.dependencies import sources as sources
from tradeoff.studies.format import SCHEMA as SCHEMA
from tradeoff.studies.format import header as header
from tradeoff.studies.format import schema as schema
from tradeoff.studies.provenance import digest as digest
from tradeoff.studies.provenance import provenance as provenance
from tradeoff.studies.provenance import restored as restored
from tradeoff.studies.store import load as load
from tradeoff.studies.store import save as save
