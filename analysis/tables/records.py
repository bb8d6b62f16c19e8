"""Tables and NumPy values converted to what JSON can hold."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pandas as pd

_JSON_SCALARS = (str, int, bool, type(None))


def records(frame: pd.DataFrame) -> list[dict]:
    """The rows as dictionaries {column: value}, NumPy scalars as Python's."""
    names, columns = frame.columns.tolist(), [_values(column) for _, column in frame.items()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pd.Series) -> list:
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "bif":
        return column.tolist()
    # to_numpy first: reading a text column value by value takes ten times as long.
    return [
        value.item() if isinstance(value, np.generic) else value for value in column.to_numpy(dtype=object)
    ]


def to_json_value(value: Any) -> Any:
    """``value`` as JSON can hold it: NumPy scalars as numbers, structs as dictionaries, NaN and infinities as None."""
    kind = type(value)
    if kind is float:  # the most frequent kind first
        return value if math.isfinite(value) else None
    if kind in _JSON_SCALARS:
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, msgspec.Struct):
        return to_json_value(msgspec.to_builtins(value))
    if isinstance(value, list | tuple | np.ndarray | pd.Series):
        return [to_json_value(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if value is None or value is pd.NA:
        return None
    return value if isinstance(value, str) else str(value)
