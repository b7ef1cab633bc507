"""A configuration file from tables. A secret may be text, or ``{"env": …}`` or ``{"file": …}``, as a user writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def text_of(redis_url: Any, tables: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"redis_url = {_value(redis_url)}"]
    for name, table in {**tables, **{f"sources.{name}": table for name, table in sources.items()}}.items():
        lines += [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)
