"""Commands of the training side: `logitcask train` and `logitcask report`. torch is imported only when they run."""
