"""Proving a cask, and taking out what is damaged."""
