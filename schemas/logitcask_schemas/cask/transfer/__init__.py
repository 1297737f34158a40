"""Copying, joining and dividing casks."""
