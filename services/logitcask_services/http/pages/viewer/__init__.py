"""The cask viewer and the curves of runs: reads casks and folders, knows of no service, database or engine."""
