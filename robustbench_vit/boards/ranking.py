"""Which rows of a board are really above which: ranks by paired tests on the samples that all rows share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robustbench_vit.records import Record
from robustbench_vit.statistics import ranks


def ranked(records: Mapping[str, Record], alpha: float) -> dict[str, int]:
    """The rank of each record: 1 + the number of others that are significantly above it; equal ranks are ties.

    `records` are complete and narrowed to one attack and eps. Exact McNemar tests over all pairs, Holm's correction at
    the level `alpha`. Empty when there are no records, or when they hold different samples.
    """
    robust = _on_shared_samples(records)
    return {} if robust is None else dict(zip(records, ranks(robust, alpha), strict=True))


def _on_shared_samples(records: Mapping[str, Record]) -> np.ndarray | None:
    """bool (record, sample): whether the sample stays robust; None when the records don't hold the same samples."""
    if not records:
        return None
    first = next(iter(records.values())).samples
    rows = [_in_order(record, first) for record in records.values()]
    return None if any(row is None for row in rows) else np.stack([row for row in rows if row is not None])


def _in_order(record: Record, samples: list[str]) -> np.ndarray | None:
    """bool (sample,) in the order of `samples`; None when the record holds others."""
    held = record.samples
    if held == samples:
        return record.robust
    place = {sample: i for i, sample in enumerate(held)}
    if place.keys() != set(samples) or len(held) != len(samples):
        return None
    return record.robust[[place[sample] for sample in samples]]
