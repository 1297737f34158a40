"""Generations without engine, database and HTTP: rows, templates, recipes, and the steps between them."""
