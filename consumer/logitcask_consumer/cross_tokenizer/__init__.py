"""Training a student whose tokenizer is not the teacher's, from the same cask."""
