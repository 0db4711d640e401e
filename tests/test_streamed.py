"""A streamed model is the model: weights, numbers and tables bit for bit, few blocks in memory, each read once."""

import resource
from pathlib import Path

import pytest
import torch
from families import FAMILIES, tiny_model
from torch import Tensor, nn

import depthscope as ds
from depthscope.edits import drop, drop_attn, drop_mlp, swap
from depthscope.engine.execute import execute
from depthscope.engine.plan import block_order, make_plan
from depthscope.errors import ModelError, UnsupportedError
from depthscope.models import kernels, memory
from depthscope.models.from_files import from_files
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.models.noise_floor import noise_floor
from depthscope.models.offload import streaming
from depthscope.models.stack import BlockStack
from depthscope.models.weights import mlp_output_weights, reading_weights
from depthscope.routes import Route

IDS = (torch.arange(24).view(2, 12) * 7) % 97


@pytest.fixture
def folder_of(tmp_path):
    """Saves a tiny model of a family and says where."""

    def saved(family: str, **options) -> Path:
        shards = {name: options.pop(name) for name in ("max_shard_size",) if name in options}
        tiny_model(family, **options).save_pretrained(tmp_path / family, **shards)
        return tmp_path / family

    return saved


def both(folder: Path | str, **options) -> tuple[Model, Model]:
    return load(folder, stream="no", **options), load(folder, stream="yes", **options)


def unchecked(folder: Path, dtype: torch.dtype) -> list[BlockStack]:
    """In memory and streamed, without the search for head and components."""
    name = str(dtype).removeprefix("torch.")
    loaded = [from_files(str(folder), None, name, torch.device("cpu"), stream) for stream in ("no", "yes")]
    with torch.inference_mode():
        return [BlockStack(one.hf, one.residency) for one in loaded]


def differing(whole: BlockStack, streamed: BlockStack) -> list[str]:
    pairs = zip(whole.weights(), streamed.weights(), strict=True)
    return [name for (name, a), (other, b) in pairs if name != other or a.dtype != b.dtype or not torch.equal(a, b)]


def sweep(depth: int) -> list[Route]:
    own = Route.own(depth)
    return [
        own,
        *(edit(layer)(own) for edit in (drop, drop_attn, drop_mlp) for layer in range(depth)),
        *(swap(layer)(own) for layer in range(depth - 1)),
    ]


@torch.inference_mode()
def final_streams(model: Model, routes: list[Route], width: int = 1) -> dict[int, Tensor]:
    plan = make_plan(routes, width, together=1)
    model.stack.expect(block_order(plan))
    return {
        index: stream.clone()
        for ends, residual in execute(model, plan, IDS)
        for indices, stream in zip(ends, residual.split(len(IDS)), strict=True)
        for index in indices
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_offrom_files(family, folder_of):
    whole, streamed = unchecked(folder_of(family), torch.float32)
    with torch.inference_mode():
        assert torch.equal(whole.model(IDS).logits, streamed.model(IDS).logits)
    residency = streamed.residency
    assert 1 <= len(residency.present) <= 3 < streamed.depth
    assert differing(whole, streamed) == []
    streamed.release()
    assert all(p.is_meta for p in streamed.blocks[0].parameters())


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_shards_and_other_dtypes(family, folder_of):
    folder = folder_of(family, dtype=torch.bfloat16, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    for dtype in (torch.float32, torch.bfloat16):
        whole, streamed = unchecked(folder, dtype)
        assert differing(whole, streamed) == []
        assert {weight.dtype for _, weight in streamed.weights()} == {dtype}


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe", "gemma2", "opt"])
def test_a_sweep_gives_the_same_residual_streams(family, folder_of):
    whole, streamed = both(folder_of(family), verify=False)
    routes = sweep(whole.depth)
    expected, got = final_streams(whole, routes), final_streams(streamed, routes, width=len(routes))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[index], got[index]) for index in expected)


def test_a_cohort_reads_each_block_once_and_keeps_three(folder_of):
    model = load(folder_of("llama", num_hidden_layers=12), stream="yes", verify=False)
    residency, routes, most = model.stack.residency, sweep(12), []
    for block in model.stack.blocks:
        block.register_forward_hook(lambda *_: most.append(len(residency.present) + len(residency._reading)))
    for width in (len(routes), 16):
        residency.release()
        before = list(residency.reader.reads)
        final_streams(model, routes, width)
        cohorts = 1 + -(-(len(routes) - 1) // width)
        reads = [after - earlier for after, earlier in zip(residency.reader.reads, before, strict=True)]
        # A block more than one per cohort: the last cohort may end while a block that it does not need is read ahead.
        assert max(reads) <= cohorts
        assert sum(reads) <= 12 * cohorts + 1
    assert max(most) <= 3


def test_without_a_plan_the_blocks_are_read_in_their_own_order(folder_of):
    model = load(folder_of("llama", num_hidden_layers=8), stream="yes", verify=False)
    residency = model.stack.residency

    def reads() -> list[int]:
        """Counted when nothing is being read ahead any more, in whichever run that was begun."""
        for future in residency._reading.values():
            future.result()
        return list(residency.reader.reads)

    with torch.inference_mode():
        model.hf(IDS)
        for _ in range(3):
            before = reads()
            model.hf(IDS)
            after = reads()
            assert all(now - then <= 1 for now, then in zip(after, before, strict=True))
            assert sum(after) - sum(before) >= 8 - 3


def test_a_block_stays_while_it_is_held(folder_of):
    model = load(folder_of("llama", num_hidden_layers=6), stream="yes", verify=False)
    with torch.inference_mode(), model.stack.resident(1):
        model.hf(IDS)
        assert not any(p.is_meta for p in model.stack.blocks[1].parameters())
        assert 1 in model.stack.residency.present
    model.stack.release()
    assert model.stack.residency.present == ()
    assert all(p.is_meta for p in model.stack.blocks[1].parameters())


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_weights_read_for_analysis_are_the_same_and_keep_no_block(family, folder_of):
    whole, streamed = both(folder_of(family))
    for block in range(whole.depth):
        for processed in (True, False):
            rows = mlp_output_weights(streamed, block, processed)
            assert torch.equal(mlp_output_weights(whole, block, processed), rows)
            assert rows.untyped_storage().nbytes() == rows.nbytes
        ours, theirs = reading_weights(streamed, block), reading_weights(whole, block)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name].weight, theirs[name].weight) for name in ours)
        assert all(own.weight.untyped_storage().nbytes() == own.weight.nbytes for own in ours.values())


def test_the_noise_floor_is_the_same(folder_of):
    whole, streamed = both(folder_of("gemma2"), dtype="bfloat16")
    assert noise_floor(whole, IDS) == noise_floor(streamed, IDS)
    assert noise_floor(whole, IDS).kl > 0


def test_a_study_has_the_same_tables_and_is_resumed_the_other_way(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "SHARE", 0.0)  # packed products, which streamed blocks do without, round differently
    text = ds.corpus("bookshelf", tokens=32)
    settings = {"edits": ("swap",), "window": 16, "progress": False}
    whole, streamed = both("bookshelf-neox", verify=False)
    first = ds.study(whole, text, out=tmp_path / "first", experiments=("sweep", "norms"), **settings)
    second = ds.study(streamed, text, out=tmp_path / "second", experiments=("sweep",), **settings)
    assert [study.run.manifest.model.streamed for study in (first, second)] == [False, True]
    second = ds.study(whole, text, out=tmp_path / "second", experiments=("sweep", "norms"), **settings)
    for name in ("sweep", "norms"):
        assert first.table(name).equals(second.table(name))


def test_kept_in_the_hosts_memory_blocks_are_read_from_disk_once(folder_of):
    """What CUDA uses: only the copy to the card is missing here."""
    folder = folder_of("gpt2")
    model = load(folder, stream="yes", verify=False)
    reader = model.stack.residency.reader
    reader._kept = {}
    first = reader.read(2)
    assert reader.read(2) is first
    model.stack.release()
    with torch.inference_mode():
        expected = load(folder, stream="no", verify=False).hf(IDS).logits
        assert torch.equal(model.hf(IDS).logits, expected)


def test_a_checkpoint_that_changes_is_noticed(folder_of):
    folder = folder_of("gpt2")
    model = load(folder, stream="yes", verify=False)
    model.stack.release()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match="was changed or replaced while the model was in use"), torch.inference_mode():
        model.hf(IDS)


def test_auto_streams_what_would_not_fit(folder_of, monkeypatch):
    folder = folder_of("gpt2")
    needs = sum(p.nbytes for p in tiny_model("gpt2").parameters())
    for available, streamed in ((None, False), (int(needs / 0.6), False), (int(needs / 0.8), True)):
        monkeypatch.setattr(streaming, "device_memory", lambda _device, available=available: available)
        assert load(folder, verify=False).facts.streamed == streamed


def test_what_cannot_be_streamed_says_so(folder_of):
    folder = folder_of("gpt2")
    with pytest.raises(ModelError, match=r"'maybe'.*auto, yes, no"):
        load(folder, stream="maybe")
    with pytest.raises(UnsupportedError, match="loaded already"):
        load(tiny_model("gpt2"), stream="yes")
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"transformers_weights": "other.safetensors",', 1))
    with pytest.raises(ModelError, match="names files of its own for the weights"):
        load(folder, stream="yes")


def test_routes_under_way_follow_from_memory(folder_of):
    whole, streamed = both(folder_of("gpt2"), verify=False)
    streamed.stack.residency.room = 40 * 100 * 32 * 4
    assert streamed.routes_under_way(tokens=100, together=1) == 40
    assert streamed.routes_under_way(tokens=100, together=64) == 64
    assert whole.routes_under_way(tokens=100, together=3) == 3


def test_available_memory_is_the_least_of_machine_process_and_group(tmp_path, monkeypatch):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "a/b").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    (proc / "self/status").write_text("Name:\tpython\nVmSize:\t 3000 kB\nVmData:\t 1000 kB\n")
    (proc / "self/cgroup").write_text("0::/a/b\n")
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "CGROUPS", groups)
    limits = {resource.RLIMIT_AS: resource.RLIM_INFINITY, resource.RLIMIT_DATA: resource.RLIM_INFINITY}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], resource.RLIM_INFINITY))
    assert memory.available_memory() == 8000 * 1024
    limits[resource.RLIMIT_DATA] = 7000 * 1024
    assert memory.available_memory() == 6000 * 1024
    limits[resource.RLIMIT_AS] = 8000 * 1024
    assert memory.available_memory() == 5000 * 1024
    (groups / "a/b/memory.max").write_text("max\n")
    (groups / "a/memory.max").write_text(f"{4000 * 1024}\n")
    (groups / "a/memory.current").write_text(f"{3000 * 1024}\n")
    (groups / "a/memory.stat").write_text(f"anon 5\ninactive_file {500 * 1024}\n")
    assert memory.available_memory() == 1500 * 1024


def test_a_weight_changed_while_it_is_loaded_is_refused():
    from depthscope.models.offload.checkpoint import StoredTensor
    from depthscope.models.offload.deferred import Deferred

    deferred = Deferred.of(StoredTensor(Path("nowhere"), 0, torch.float32, (3, 4)))
    with pytest.raises(UnsupportedError, match="mul_"):
        deferred.mul_(2)
    assert isinstance(nn.Parameter(deferred), Deferred)


def test_operations_on_deferred_tensors_are_repeated_on_their_numbers(tmp_path):
    from safetensors.torch import save_file

    from depthscope.models.offload.checkpoint import read_headers, stored_tensors
    from depthscope.models.offload.deferred import Deferred

    numbers = {name: torch.randn(4, 6, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")}
    save_file(numbers, tmp_path / "x.safetensors")
    deferred = {
        name: Deferred.of(tensor) for name, tensor in stored_tensors(read_headers([tmp_path / "x.safetensors"])).items()
    }

    def made(a: Tensor, b: Tensor) -> list[Tensor]:
        first, second = torch.cat([a, b], dim=1).chunk(2, dim=0)
        return [torch.stack([a, b]), first, second.T, a[...].to(torch.bfloat16), b.to(device="cpu").detach()]

    for expected, got in zip(made(**numbers), made(**deferred), strict=True):
        assert got.is_meta
        assert torch.equal(got.numbers(), expected)
