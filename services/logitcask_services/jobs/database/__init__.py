"""The job database: SQLite, and one module for each thing it keeps."""
