"""`/v1/corpora`: upload and look up."""
