"""The command line: `logitcask`, and its `cask` commands."""
