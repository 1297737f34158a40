"""The file formats of a shard, one module each, behind one protocol."""
