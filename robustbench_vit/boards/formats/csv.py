"""A table as CSV."""

from __future__ import annotations

import csv
import io

from robustbench_vit.boards.flat import field_values
from robustbench_vit.boards.formats.rounding import rounded
from robustbench_vit.boards.table import Table


def comma_separated(table: Table) -> str:
    """A line per entry; shares as fractions, an interval as three columns, nothing for a missing record."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.field_names())
    for row in table.rows:
        writer.writerow([rounded(value) for value in field_values(row.cells, table.columns)])
    return out.getvalue()
