"""A corpus into a cask without the service: who runs the chunks of its plan, here or on many machines."""
