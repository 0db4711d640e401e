"""The engine: a plan shares the work of many routes, execution runs it on a batch of tokens.

See `plan` for what is shared and in which order, `execute` for running it, `measure_routes` for per-token numbers,
`divergence` for comparing next-token distributions without holding the logits.
"""
