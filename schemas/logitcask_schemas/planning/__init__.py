"""What a capture will take, on paper: GPU time, bytes, files, failures, before anything runs."""
