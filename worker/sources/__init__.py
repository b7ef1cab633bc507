"""The list of vendors: from the settings of a source to the source itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from worker.model import Shared
from worker.settings import SourceSettings
from worker.sources.api2convert import Api2convert
from worker.sources.base import Source
from worker.sources.crayon import Crayon
from worker.sources.sellercloud import Sellercloud
from worker.sources.spaaza import Spaaza

# Each takes its own vendor's settings, which `vendor` has told apart already.
_VENDORS: Mapping[str, Callable[[Any, Shared], Source]] = {
    "sellercloud": Sellercloud,
    "api2convert": Api2convert,
    "spaaza": Spaaza,
    "crayon": Crayon,
}


def open_source(settings: SourceSettings, shared: Shared) -> Source:
    """Give the source that `settings` describe. Opens no connection yet and logs in with the first call."""
    return _VENDORS[settings.vendor](settings, shared)
