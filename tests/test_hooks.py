"""A model is changed for the time of a context and never longer: whatever ends it, hooks and attributes are as they were."""

import pytest
import torch
from torch import nn

from depthscope.models.hooks import hook_for_good, hooked, patched, replaced


def hooks_of(module):
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def watch(module, args, kwargs, output=None):
    """Sees a call and changes nothing."""


def opened(kind, module):
    """Each kind of context, on one module."""
    if kind == "replaced":
        return replaced([module], "forward", [torch.zeros_like])
    return hooked(before=[(module, watch)], after=[(module, watch)])


@pytest.fixture(params=["hooked", "replaced"])
def context(request):
    """Opens one kind of context in turn."""
    return lambda module: opened(request.param, module)


def changed(module):
    return bool(hooks_of(module)) or patched(module)


def test_a_context_changes_a_module_while_it_is_open(context):
    module = nn.Linear(3, 3)
    with context(module):
        assert changed(module)
    assert not changed(module)


def test_an_error_ends_it(context):
    module = nn.Linear(3, 3)
    with pytest.raises(ZeroDivisionError), context(module):
        raise ZeroDivisionError
    assert not changed(module)


def test_closing_a_generator_that_holds_it_ends_it(context):
    module = nn.Linear(3, 3)

    def steps():
        with context(module):
            yield 1
            yield 2

    generator = steps()
    next(generator)
    assert changed(module)
    generator.close()
    assert not changed(module)


class Fixed(nn.Module):
    """Neither hooked nor replaced."""

    forward = property(lambda self: None)

    def register_forward_pre_hook(self, *_args, **_settings):
        raise AttributeError


def test_a_module_that_cannot_be_changed_leaves_none_changed():
    module = nn.Linear(3, 3)
    with pytest.raises(AttributeError), hooked(before=[(module, watch), (Fixed(), watch)]):
        pass
    with pytest.raises(AttributeError), replaced([module, Fixed(), module], "forward", [torch.abs] * 3):
        pass
    assert not changed(module)


def test_functions_see_all_of_a_call_in_order_and_may_change_it():
    module, seen = nn.Identity(), []

    def doubled(_module, args, kwargs):
        return (2 * args[0],), kwargs

    def see(name):
        return lambda _module, args, kwargs, output: seen.append((name, args[0].item(), output.item()))

    def negated(_module, _args, _kwargs, output):
        return -output

    x = torch.tensor(3.0)
    with hooked(before=[(module, doubled)], after=[(module, see("first")), (module, negated), (module, see("last"))]):
        assert module(x) == -6
    assert seen == [("first", 6.0, 6.0), ("last", 6.0, -6.0)]
    assert module(x) == 3


def test_what_was_replaced_before_is_put_back():
    module = nn.Linear(3, 3)
    module.forward = torch.negative
    x = torch.ones(3)
    # The same module twice: the first replacement is not taken for the module's own.
    with replaced([module, module], "forward", [torch.exp, torch.zeros_like]):
        assert module(x).tolist() == [0, 0, 0]
        with replaced([module], "forward", [torch.abs]):
            assert module(x).tolist() == [1, 1, 1]
        assert module(x).tolist() == [0, 0, 0]
    assert vars(module)["forward"] is torch.negative


class Handed:
    """As transformers' configurations: a setting is handed down to the configuration within."""

    def __init__(self, setting, within=None):
        self._own, self.within = setting, within

    @property
    def setting(self):
        return self._own

    @setting.setter
    def setting(self, value):
        self._own = value
        if self.within is not None:
            self.within.setting = value


def test_a_setting_that_is_handed_down_is_put_back_everywhere():
    inner = Handed("inner")
    outer = Handed("outer", inner)
    with replaced([outer, inner], "setting", ["eager"] * 2):
        assert (outer.setting, inner.setting) == ("eager", "eager")
    assert (outer.setting, inner.setting) == ("outer", "inner")
    assert "setting" not in vars(outer)


def test_a_hook_for_good_runs_before_all_others_and_stays():
    module, order = nn.Identity(), []

    def note(name):
        return lambda *_: order.append(name)

    with hooked(before=[(module, note("while open"))]):
        hook_for_good(module, note("for good"))
        module(torch.ones(1))
    module(torch.ones(1))
    assert order == ["for good", "while open", "for good"]
