"""The operator's list of who may be loaded: a file of teachers, a folder of students."""
