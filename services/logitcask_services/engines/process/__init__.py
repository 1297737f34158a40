"""An engine, or a generator, in a process of its own: what it dies of, or hangs in, ends that process alone."""
