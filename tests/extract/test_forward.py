"""The forward pass of an extraction: what does not fit is halved, what is computed in is as asked, positions are gathered."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.config import ExtractConfig
from extract.datasets import open_source
from extract.forward import Forward, computing_in, fitting_batch_size
from extract.plan import Plan, plan_extraction
from extract.stream import batches_of
from extract.stream import extract as run_extraction
from stores.errors import EDDPError
from stores.readers import LayerReader
from stores.store import ActivationStore

Images = Callable[..., Path]


def plan_of(root: Path, **options: object) -> Plan:
    values = {"model": "tiny_net:build", "layers": ("first", "second"), "dtype": "float32", **options}
    return plan_extraction(open_source(root), ExtractConfig(**values))  # type: ignore[arg-type]


def outcomes(forward: Forward, images: torch.Tensor) -> tuple[list[int], np.ndarray]:
    found = [outcome.wait() for outcome in forward(images, {})]
    assert [o.start for o in found] == np.cumsum([0, *(len(o.images) for o in found)])[:-1].tolist()
    return [len(o.images) for o in found], np.concatenate([o.activations["second"].numpy() for o in found])


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``little_memory(3)``: no more than three images fit from now on."""
    real = Forward.logits

    def limit(most: int, error: Exception | None = None) -> None:
        def runs_out(forward: Forward, images: torch.Tensor) -> torch.Tensor:
            if len(images) > most:
                raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return real(forward, images)

        monkeypatch.setattr(Forward, "logits", runs_out)

    return limit


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_batch_that_does_not_fit_is_halved_for_good(
    tiny_images: Images, little_memory: Callable, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    images = torch.randn(11, 3, 16, 16)
    with plan_of(tiny_images()).forward() as forward:
        sizes, wanted = outcomes(forward, images)
        assert sizes == [11]
        little_memory(3, error)
        sizes, found = outcomes(forward, images)
        assert sizes == [2, 2, 2, 2, 2, 1]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
        assert [record.getMessage() for record in caplog.records] == [
            "not enough memory on 'cpu' for a batch; continuing with 5 images at a time",
            "not enough memory on 'cpu' for a batch; continuing with 2 images at a time",
        ]
        assert outcomes(forward, images[:4])[0] == [2, 2]  # the next batch does not try again


def test_not_even_one_image_fits(tiny_images: Images, little_memory: Callable) -> None:
    with plan_of(tiny_images()).forward() as forward:
        little_memory(0)
        with pytest.raises(EDDPError, match="'cpu' has not enough memory for a single image"):
            list(forward(torch.randn(4, 3, 16, 16), {}))


def test_other_errors_are_no_want_of_memory(tiny_images: Images, little_memory: Callable) -> None:
    with plan_of(tiny_images()).forward() as forward:
        little_memory(0, RuntimeError("shapes cannot be multiplied"))
        with pytest.raises(RuntimeError, match="shapes"):
            list(forward(torch.randn(4, 3, 16, 16), {}))


def test_an_extraction_that_runs_out_of_memory_resumes(
    tmp_path: Path, tiny_images: Images, little_memory: Callable
) -> None:
    root, config = tiny_images(), ExtractConfig("tiny_net:build", ("second",), dtype="float32", batch_size=8)
    run_extraction(open_source(root), tmp_path / "whole", config)
    little_memory(3)
    summary = run_extraction(open_source(root), tmp_path / "s", config)
    assert (summary.images, summary.batch_size) == (10, 8)
    found, wanted = (LayerReader(tmp_path / name).images(range(10)) for name in ("s", "whole"))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("precision", "off"), [("float32", 0), ("bfloat16", 0.05), ("float16", 0.01)])
def test_precision_is_as_asked_and_written_down(
    tmp_path: Path, tiny_images: Images, precision: str, off: float
) -> None:
    root = tiny_images()
    exact = ExtractConfig("tiny_net:build", ("second",), dtype="float32")
    asked = ExtractConfig("tiny_net:build", ("second",), dtype="float32", precision=precision)  # type: ignore[arg-type]
    for name, config in (("exact", exact), ("asked", asked)):
        run_extraction(open_source(root), tmp_path / name, config)
    assert ActivationStore.open(tmp_path / "asked").provenance["precision"] == precision
    a, b = (LayerReader(tmp_path / name).images(range(10)) for name in ("exact", "asked"))
    gap = np.abs(a - b).max() / np.abs(a).max()
    assert gap == 0 if not off else 0 < gap < off


def test_a_store_is_resumed_in_batches_of_its_own(
    tmp_path: Path, tiny_images: Images, caplog: pytest.LogCaptureFixture
) -> None:
    root = tiny_images()

    def run(batch_size: int | None, shard: tuple[int, int]) -> int:
        config = ExtractConfig("tiny_net:build", ("second",), batch_size=batch_size, chunk_images=4, shard=shard)
        return run_extraction(open_source(root), tmp_path / "s", config).batch_size

    assert run(3, (0, 3)) == 3
    assert run(None, (1, 3)) == 3
    assert not caplog.records
    assert run(2, (2, 3)) == 2
    assert "was started with batches of 3 images; with 2 the last bits" in caplog.text
    store = ActivationStore.open(tmp_path / "s")
    assert store.provenance["batch_size"] == 3
    assert store.verify() == []


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
def test_batches_cover_a_chunk(size: int) -> None:
    batches = batches_of(range(4, 8), size)
    assert [i for batch in batches for i in batch] == [4, 5, 6, 7]
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert 1 <= len(batches[-1]) <= size


def test_hooks_and_settings_go_with_the_block(tiny_images: Images) -> None:
    plan = plan_of(tiny_images())
    with suppress(KeyboardInterrupt), plan.forward() as forward:
        assert torch.is_inference_mode_enabled()
        list(forward(torch.randn(1, 3, 16, 16), {}))
        raise KeyboardInterrupt
    assert not torch.is_inference_mode_enabled()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plan.first.module.modules())


def test_a_processor_takes_batches_of_16(tiny_images: Images) -> None:
    plan = plan_of(tiny_images())
    assert plan.batch_size == fitting_batch_size(plan.first.module, torch.zeros(1, 3, 16, 16), "cpu") == 16


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(tmp_path: Path, tiny_images: Images) -> None:
    root = tiny_images(40)
    for device in ("cpu", "cuda"):
        config = ExtractConfig(
            "tiny_net:build", ("second",), dtype="float32", device=device, positions=5, chunk_images=8
        )
        run_extraction(open_source(root), tmp_path / device, config)
    stores = [ActivationStore.open(tmp_path / device) for device in ("cpu", "cuda")]
    np.testing.assert_allclose(stores[0].logits, stores[1].logits, rtol=1e-4, atol=1e-5)
    a, b = (LayerReader(store).images(range(40)) for store in stores)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_a_gpu_takes_what_its_memory_holds(tiny_images: Images) -> None:
    plan = plan_of(tiny_images(), device="cuda")
    assert plan.batch_size == 512
    before = torch.backends.cuda.matmul.allow_tf32
    with computing_in("tf32", torch.device("cuda")):
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == before
