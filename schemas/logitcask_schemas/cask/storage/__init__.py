"""Bytes on a disk or in an object store: durable writes, careful reads, the writers' lock."""
