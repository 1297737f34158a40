"""The packed record: the columns of a shard in as few bits as a simple code needs, and back without a loss."""
