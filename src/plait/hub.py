"""The Hub: asked once whether it can be reached, so that a name that is neither a path nor cached fails at once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 5.0
"""Seconds to wait for an answer."""


@contextmanager
def reach_hub() -> Iterator[str | None]:
    """Yields why the Hub cannot be reached, None if it can.

    Inside, the libraries look into their caches alone where it cannot, and their retries are not logged.
    """
    from huggingface_hub import constants

    reason = _obstacle()
    log = logging.getLogger("huggingface_hub")
    level = log.level
    places: list[Any] = [constants]
    if "datasets" in sys.modules:
        places.append(sys.modules["datasets"].config)
    before = [place.HF_HUB_OFFLINE for place in places]
    log.setLevel(logging.ERROR)
    try:
        for place in places if reason else ():
            place.HF_HUB_OFFLINE = True
        yield reason
    finally:
        log.setLevel(level)
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _obstacle() -> str | None:
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # whatever the client of the day raises
        return str(error).partition("\n")[0].strip() or type(error).__name__
    return None
