"""Hypothesis strategies for routes and edits."""

from hypothesis import strategies as st

from depthscope.edits import (
    Edit,
    drop,
    drop_attn,
    drop_head,
    drop_mlp,
    drop_neuron,
    drop_ple,
    drop_ssm,
    exchange,
    loop,
    mean_ablate_head,
    mean_ablate_neuron,
    parallel,
    repeat,
    repeat_middle,
    repeat_range,
    resample_ablate_head,
    resample_ablate_neuron,
    reverse,
    shuffle,
    swap,
)
from depthscope.routes import COMPONENTS, HOLDERS, MODES, Ablated, Parallel, Route, Step

DEPTH = 6
layers = st.integers(0, DEPTH - 1)
silences = st.lists(st.sampled_from(COMPONENTS), max_size=3).map(tuple)
PARTS = [Ablated(kind, index, mode) for kind in HOLDERS for index in (*range(8), 40, 4000) for mode in MODES]
ablated = st.lists(st.sampled_from(PARTS), max_size=4, unique_by=lambda one: (one.kind, one.index)).map(tuple)
steps = st.builds(Step, layers, silences, ablated)
visits = steps | st.lists(steps, min_size=1, max_size=3).map(lambda members: Parallel(tuple(members)))
routes = st.lists(visits, max_size=9).map(lambda seen: Route(DEPTH, tuple(seen)))
spans = st.tuples(layers, layers).map(sorted)
reorderings: st.SearchStrategy[Edit] = st.one_of(
    st.integers(0, DEPTH - 2).map(swap),
    st.builds(exchange, layers, layers),
    spans.map(lambda span: reverse(*span)),
    st.builds(lambda seed, span: shuffle(seed, *span), st.integers(0, 99), spans),
)
edits: st.SearchStrategy[Edit] = st.one_of(
    reorderings,
    spans.map(lambda span: drop(*span)),
    layers.map(drop_attn),
    layers.map(drop_mlp),
    layers.map(drop_ssm),
    layers.map(drop_ple),
    *(
        st.builds(
            lambda layer, several, edit=edit: edit(layer, *several), layers, st.lists(st.integers(0, 9), min_size=1)
        )
        for edit in (
            *(drop_head, mean_ablate_head, resample_ablate_head),
            *(drop_neuron, mean_ablate_neuron, resample_ablate_neuron),
        )
    ),
    st.builds(lambda span, times: repeat(*span, times), spans, st.integers(1, 3)),
    st.builds(lambda span, times: repeat_range(*span, times), spans, st.integers(1, 3)),
    spans.map(lambda span: repeat_middle(*span)),
    spans.map(lambda span: parallel(*span)),
    st.builds(lambda span, times: loop(*span, times), spans, st.integers(1, 3)),
)
