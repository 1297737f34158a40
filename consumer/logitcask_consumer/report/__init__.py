"""The report: students beside their teacher on held-out documents, in numbers with confidence intervals and in plots.

Read `evaluate` (what is measured at one position, and over a cask), `bounds` (what a record says of tokens that it does
not hold), `estimates` (means with intervals), then `document`, `markdown`, `page` and `plots` (how they are shown).
`build` puts all of it together.
"""
