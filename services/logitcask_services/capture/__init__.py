"""Logits in, records out: the one implementation of capture, in torch, shared by every engine."""

from logitcask_services.capture.columns import RecordColumns
from logitcask_services.capture.module import RecordCapture
from logitcask_services.capture.packing import pack_wire

__all__ = ["RecordCapture", "RecordColumns", "pack_wire"]
