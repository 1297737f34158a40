"""Students: where they come from, whether they fit the teacher, and their forward pass."""
