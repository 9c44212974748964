"""What one test had evaluated. Light: every test session imports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustbench_vit.testing.accuracy import RobustAccuracy


@dataclass
class Seen:
    """What one test had evaluated."""

    lines: list[str] = field(default_factory=list)  # for the summary
    properties: list[tuple[str, object]] = field(default_factory=list)  # for JUnit

    def add(self, name: str, found: RobustAccuracy) -> None:
        """Keeps a number that goes by `name` for the summary and for JUnit."""
        from robustbench_vit.testing.report import summary_line

        line = summary_line(name, found)
        if line in self.lines:
            return
        low, high = found.interval
        self.lines.append(line)
        said = {"entry": name, "value": found.value, "low": low, "high": high, "n": found.n}
        said["protocol_id"] = found.record.protocol_id
        self.properties += [(f"robust_accuracy.{key}", value) for key, value in said.items()]
