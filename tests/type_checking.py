"""How types are checked at run time where `PLAIT_TYPES` asks for it."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""A whole number is a `float` too, as type checkers have it."""
