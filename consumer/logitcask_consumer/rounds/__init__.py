"""On-policy distillation in rounds: the student writes, the service's teacher says what it thinks, a phase is trained.

Read in this order: `config`, `recipes` (what a method is), `state` (what survives a kill), `prompts`, `sampler`,
`samples` (the student's texts), `capture` (the service), `buffer` and `phases` (what a phase trains on), `driver`.
"""
