"""Durable extractions: the database, the plan of chunks, and the threads that carry them out."""
