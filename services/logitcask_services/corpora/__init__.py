"""Corpora: uploaded JSONL on disk, its lines as documents, their tokens in an immutable store."""
