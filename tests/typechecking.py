"""The run-time type checker of the tests: shapes and types of public functions, with `int` accepted for `float`."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
