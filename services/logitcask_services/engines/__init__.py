"""Engines: what runs the teacher. One protocol, `vllm` and `transformers` behind it."""
