"""`/v1/previews`: what an extraction would make of a corpus."""
