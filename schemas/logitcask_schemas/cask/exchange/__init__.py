"""Other tools' caches of a teacher into casks, and casks into what other trainers and the Hub take."""
