"""What a record is: capture spec, teacher identity, records of positions, and their packed form on the wire."""
