"""The demonstration: the whole line on one machine, from real text to a trained student and its report."""
