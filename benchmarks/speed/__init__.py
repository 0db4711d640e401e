"""How fast is a sweep? Ours against what else one could run, in turns, with the floor that matrix products set.

    make bench                                                            everything, about an hour on 2 cores
    python -m benchmarks.speed --quick                                    2 to 3 minutes, two alternatives, no targets
    python -m benchmarks.speed --shapes gpt2-small --dtypes float32 --alternatives floor --parts sweeps --rounds 1
    python -m benchmarks.speed --shapes pythia-410m --dtypes bfloat16 --alternatives floor,hooks

The third line is what tuning wants: one shape, ours and the floor, in one round. Run from the repository's root. Only
`--write`, which `make bench` gives, changes `docs/performance.md`.

`shapes` are the models, `routes` the edits, `ours` and `hooks` what runs in this process, `workers` what runs in an
environment of its own (`peers/`), `floor` the matrix products, `rounds` the taking of turns, `parts` what is measured,
`table` the lines and the page.
"""
