"""What an evaluation leaves behind: outcomes, the journal, the record. No torch."""

from robustbench_vit.records.outcome import Outcome, Status
from robustbench_vit.records.record import Finding, Record, protocol_id

__all__ = ["Finding", "Outcome", "Record", "Status", "protocol_id"]
