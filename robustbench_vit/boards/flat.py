"""A table with one value per field, for CSV and pandas: an interval becomes three fields."""

from __future__ import annotations

from collections.abc import Sequence

from robustbench_vit.boards.columns import Column, Estimate, Kind, Value

Number = str | int | float | None


def field_names(column: Column) -> list[str]:
    """The column's key, or three names for an interval: `autoattack:estimate`, `autoattack:low`, `autoattack:high`."""
    if column.kind is not Kind.INTERVAL:
        return [column.key]
    share = column.key.removesuffix(":interval")
    return [f"{share}:estimate", f"{share}:low", f"{share}:high"]


def field_values(cells: Sequence[Value], columns: Sequence[Column]) -> list[Number]:
    """The row's values, one for each of the columns' field names."""
    return [value for cell, column in zip(cells, columns, strict=True) for value in _values(cell, column)]


def _values(cell: Value, column: Column) -> list[Number]:
    if isinstance(cell, Estimate):
        return [cell.value, cell.low, cell.high]
    return [cell] if column.kind is not Kind.INTERVAL else [None, None, None]
