"""The HTTP side: one folder a resource, each with its routes, its wire types and its work."""
