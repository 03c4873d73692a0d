"""Results that can be trusted later: labelled data, what made them, and files that are whole or absent."""

from tradeoff._files import write_atomically as write_atomically
from tradeoff.studies.provenance import digest as digest
from tradeoff.studies.provenance import provenance as provenance
from tradeoff.studies.store import load as load
from tradeoff.studies.store import save as save
