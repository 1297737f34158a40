"""Logits in, records out: the one implementation of capture, in torch, shared by every engine."""

from logitcask_services.capture.record_capture import RecordCapture
from logitcask_services.capture.record_columns import RecordColumns, pack_wire

__all__ = ["RecordCapture", "RecordColumns", "pack_wire"]
