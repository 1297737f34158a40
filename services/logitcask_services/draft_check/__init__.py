"""A student as the draft model of vLLM's speculative decoding: what is kept of its drafts, beside what was foretold."""

from logitcask_services.draft_check.check import DraftCheck, check_draft
from logitcask_services.draft_check.speculation import DraftCheckError, Speculation, require_draft, speculate

__all__ = ["DraftCheck", "DraftCheckError", "Speculation", "check_draft", "require_draft", "speculate"]
