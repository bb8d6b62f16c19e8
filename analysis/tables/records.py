"""Tables and NumPy values as JSON holds them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

_AS_THEY_ARE = (str, int, bool, type(None))


def records(frame: pd.DataFrame) -> list[dict]:
    """The rows as dictionaries."""
    names, columns = frame.columns.tolist(), [_values(column) for _, column in frame.items()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pd.Series) -> list:
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "bif":
        return column.tolist()
    # Text is not read value by value: that takes ten times as long.
    return [
        value.item() if isinstance(value, np.generic) else value for value in column.to_numpy(dtype=object)
    ]


def plain(value: Any) -> Any:
    """``value`` as JSON holds it: NumPy scalars as numbers, NaN and infinities as None."""
    kind = type(value)
    if kind is float:  # first what almost all values are
        return value if math.isfinite(value) else None
    if kind in _AS_THEY_ARE:
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray | pd.Series):
        return [plain(item) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if value is None or value is pd.NA:
        return None
    return value if isinstance(value, str) else str(value)
