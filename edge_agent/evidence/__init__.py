"""What a person gets to see of an event. `EvidenceStore` is the door; the other modules make single files."""

from edge_agent.evidence.clip import missing_codecs
from edge_agent.evidence.store import EvidenceStore

__all__ = ["EvidenceStore", "missing_codecs"]
