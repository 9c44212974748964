"""What an evaluation leaves behind: outcomes, the journal, the record. No torch."""

from robustbench_vit.records.outcome import Outcome, Status
from robustbench_vit.records.outcomes import Outcomes
from robustbench_vit.records.record import Finding, Record, protocol_id
from robustbench_vit.records.reliability import Evidence, Judgement, Reason, Reliability

__all__ = [
    "Evidence",
    "Finding",
    "Judgement",
    "Outcome",
    "Outcomes",
    "Reason",
    "Record",
    "Reliability",
    "Status",
    "protocol_id",
]
