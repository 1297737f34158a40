"""The losses, one formula a module."""
