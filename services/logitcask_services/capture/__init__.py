"""Logits in, records out: the one implementation of capture, in torch, shared by every engine."""

from logitcask_services.capture.record_capture import RecordCapture, capture_uniforms
from logitcask_services.capture.record_columns import RecordColumns, pack_wire

__all__ = ["RecordCapture", "RecordColumns", "capture_uniforms", "pack_wire"]
