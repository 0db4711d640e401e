"""The engine: a plan shares the work of many routes, and execution runs it on a batch of tokens.

See `plan` for what is shared and in which order, `execute` for running a plan, `measure_routes` for per-token measures,
`divergence` for comparing next-token distributions without storing all logits.
"""
