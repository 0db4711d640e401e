from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEPTH, routes

from depthscope.edits import drop, drop_attn, drop_mlp, swap
from depthscope.engine.plan import EMBEDDING, Call, Finish, Free, Mean, block_calls, block_order, make_plan
from depthscope.routes import Parallel, Route

OWN = Route.own(DEPTH)
widths = st.integers(1, 12)


def carried_out(plan):
    """What each route's final stream has gone through, by following the instructions with names for tensors."""
    streams = {EMBEDDING: ()}
    finished = {}
    for instruction in plan:
        if isinstance(instruction, Call):
            given_streams = [streams[source] for source in instruction.sources]
            for target, history in zip(instruction.targets, given_streams, strict=True):
                assert target not in streams
                streams[target] = (*history, instruction.step)
        elif isinstance(instruction, Mean):
            members = [streams[source] for source in instruction.sources]
            streams[instruction.target] = (*members[0][:-1], Parallel(tuple(member[-1] for member in members)))
        elif isinstance(instruction, Finish):
            for source, indices in zip(instruction.sources, instruction.routes, strict=True):
                for index in indices:
                    assert index not in finished
                    finished[index] = streams[source]
        else:
            assert isinstance(instruction, Free)
            del streams[instruction.source]
    assert not streams, "everything is freed"
    return finished


@given(st.lists(routes, min_size=1, max_size=8), widths)
def test_every_route_is_computed_as_written_and_everything_is_freed(some, width):
    finished = carried_out(make_plan(some, width))
    assert [finished[i] for i in range(len(some))] == [route.visits for route in some]


@given(st.lists(routes, min_size=1, max_size=8), widths)
def test_width_changes_no_work(some, width):
    assert block_calls(make_plan(some, width)) == block_calls(make_plan(some, 1))


@given(st.lists(routes, min_size=1, max_size=8), widths)
def test_no_visit_after_the_same_beginning_is_computed_twice(some, width):
    beginnings = {route.visits[:end] for route in some for end in range(1, len(route.visits) + 1)}
    members = {
        (*beginning[:-1], member)
        for beginning in beginnings
        for member in (beginning[-1].members if isinstance(beginning[-1], Parallel) else beginning[-1:])
    }
    assert block_calls(make_plan(some, width)) == len(members)


@given(st.lists(routes, min_size=1, max_size=8), widths)
def test_calls_are_no_wider_than_asked_and_the_first_route_comes_first(some, width):
    plan = make_plan(some, width)
    assert all(len(instruction.targets) <= width for instruction in plan if isinstance(instruction, Call))
    first = next(instruction for instruction in plan if isinstance(instruction, Finish))
    assert 0 in first.routes[0]


@given(st.lists(routes, min_size=1, max_size=8), widths, widths)
def test_how_many_go_in_one_call_changes_no_work_and_no_route(some, width, together):
    plan = make_plan(some, width, together)
    finished = carried_out(plan)
    assert [finished[i] for i in range(len(some))] == [route.visits for route in some]
    assert block_calls(plan) == block_calls(make_plan(some))
    assert all(len(instruction.targets) <= together for instruction in plan if isinstance(instruction, Call))


def test_with_all_routes_under_way_a_block_is_come_back_to_only_from_its_neighbours():
    own = Route.own(12)
    drops = [edit(layer)(own) for edit in (drop, drop_attn, drop_mlp) for layer in range(12)]
    swaps = [swap(layer)(own) for layer in range(11)]
    for some, visits in ((drops, 1), (swaps, 2), ([*drops, *swaps], 3)):
        order = block_order(make_plan([own, *some], width=len(some), together=1), known=13)
        blocks = [block for block, _ in groupby(order)]
        assert max(blocks.count(block) for block in range(12)) == visits
        assert all(later - earlier in (-1, 1, 2) for earlier, later in pairwise(blocks))


@pytest.mark.parametrize("depth", [1, 2, 3, 12, 24])
def test_a_drop_sweep_costs_what_the_design_says(depth):
    own = Route.own(depth)
    drops = [drop(layer)(own) for layer in range(depth)]
    assert block_calls(make_plan([own, *drops])) == depth * (depth + 1) // 2


def test_a_wavefront_calls_each_block_a_few_times_only():
    own = Route.own(24)
    sweep = [edit(layer)(own) for edit in (drop, drop_attn, drop_mlp) for layer in range(24)]
    sweep += [swap(layer)(own) for layer in range(23)]
    plan = make_plan([own, *sweep], width=1000)
    calls = [instruction for instruction in plan if isinstance(instruction, Call)]
    assert len(calls) < 24 * 8
    assert block_calls(plan) > 1000


def test_only_streams_that_are_still_needed_are_kept():
    depth = 24
    own = Route.own(depth)
    held = most = 1
    for instruction in make_plan([own, *(drop(layer)(own) for layer in range(depth))]):
        held += (
            len(instruction.targets) if isinstance(instruction, Call) else -1 if isinstance(instruction, Free) else 0
        )
        most = max(most, held)
    assert most <= depth + 2
