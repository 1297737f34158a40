"""The page: what a person sees at `/`. `viewer` stands alone; the rest shows a running service."""
