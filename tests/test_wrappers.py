"""Models that take images too: their text model is what is studied, from a folder, streamed or in memory."""

import pytest
import torch
from test_load import refuse, saved  # noqa: F401 - a fixture
from wrappers import DEPTH, PREFIX, WRAPPERS, tiny_wrapper

import depthscope as ds
from depthscope.errors import VerificationError
from depthscope.models.load import load

IDS = torch.arange(1, 15)[None] * 31 % 89


@pytest.mark.parametrize("family", WRAPPERS)
def test_the_text_model_is_taken_apart_however_it_is_loaded(family, tmp_path):
    wrapper = tiny_wrapper(family)
    wrapper.save_pretrained(tmp_path)
    expected = wrapper(input_ids=IDS, use_cache=False).logits
    edited = None
    for model in (load(wrapper), load(tmp_path, stream="no"), load(tmp_path, stream="yes")):
        assert model.depth == DEPTH
        assert "vis" not in model.stack.path
        assert model.components is not None
        torch.testing.assert_close(ds.logits(model, IDS), expected, rtol=0, atol=1e-5)
        dropped = ds.logits(model, IDS, "drop(2)")
        edited = dropped if edited is None else edited
        torch.testing.assert_close(dropped, edited, rtol=0, atol=1e-5)
        of_text = sum(
            p.numel() for p in {*wrapper.get_decoder().parameters(), *wrapper.get_output_embeddings().parameters()}
        )
        assert model.facts.parameters == of_text < sum(p.numel() for p in wrapper.parameters())


def test_text_that_sees_what_follows_is_refused():
    with pytest.raises(VerificationError, match="causality"):
        load(tiny_wrapper("paligemma", PREFIX))
