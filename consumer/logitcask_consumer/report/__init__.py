"""The report: students beside their teacher on held-out documents, in numbers with confidence intervals and in plots.

Read `position_metrics` (what is measured at one position), `evaluate` (a model over a cask), `estimates` (means with
intervals), then `document`, `markdown` and `plots` (how they are shown).
"""
