"""`/v1/extractions`: start, follow, cancel, read results."""
