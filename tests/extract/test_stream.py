import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image
from tiny import contents

from extract.datasets import open_folder, open_source
from extract.forward import Forward
from extract.models import load_model
from extract.stream import ExtractConfig, ExtractSummary, extract, sampled_positions
from stores.errors import ImageError, NonFiniteError, StoreError, StoreExistsError, UnsealedStoreError, UsageError
from stores.format import LayerSpec
from stores.readers import LayerReader
from stores.store import ActivationStore

Images = Callable[..., Path]
LAYERS = ("first", "act", "second")


def run(
    root: Path, out: Path, *, progress: Callable | None = None, overwrite: bool = False, **options: object
) -> ExtractSummary:
    values = {
        "model": "tiny_net:build",
        "layers": LAYERS,
        "dtype": "float32",
        "chunk_images": 4,
        "batch_size": 3,
        "workers": 0,
    }
    more = {"progress": progress} if progress else {}
    return extract(open_source(root), out, ExtractConfig(**{**values, **options}), overwrite=overwrite, **more)


def naive(root: Path, model: str = "tiny_net:build", seed: int = 0) -> dict[str, np.ndarray]:
    """One image at a time through the module's own parts, by hand."""
    loaded = load_model(model, seed=seed)
    net, source = loaded.module, open_folder(root)
    found: dict[str, list[torch.Tensor]] = {"first": [], "act": [], "second": [], "logits": []}
    for i in range(len(source)):
        with torch.no_grad():
            first = net.first(loaded.transform(Image.open(source.path(i)).convert("RGB"))[None])
            act = first.relu()
            second = net.second(act)
            logits = net.fc(second.mean((2, 3)))
        for name, t in (("first", first), ("act", act), ("second", second)):
            found[name].append(t[0].flatten(1).T)  # (P, C)
        found["logits"].append(logits[0])
    return {name: torch.stack(parts).numpy() for name, parts in found.items()}


def near(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_all_layers_at_once_equal_the_naive_loop(tmp_path: Path, tiny_images: Images, compress: str) -> None:
    root = tiny_images()
    summary = run(root, tmp_path / "s", compress=compress)
    store, truth = ActivationStore.open(tmp_path / "s"), naive(root)
    assert summary.images == summary.done_now == 10
    assert summary.skipped == []
    assert summary.layers == {"first": (10, 64, 6), "act": (10, 64, 6), "second": (10, 16, 8)}
    for layer in LAYERS:  # "first" too, although the ReLU after it works in place
        near(LayerReader(store, layer).images(range(10)), truth[layer])
        record = store.records[0]
        near(np.float32(record.max_abs[layer]), np.abs(truth[layer][:4]).max())
    assert (truth["first"] < 0).any()
    near(store.logits, truth["logits"])
    source = open_folder(root)
    assert store.names == [source.name(i) for i in range(10)]
    assert store.labels.tolist() == [0] * 5 + [1] * 5
    assert store.valid.all()
    assert store.verify() == []
    assert summary.bytes == sum(e["bytes"] for r in store.records.values() for e in r.arrays.values())
    assert (store.affine_head("second") is not None, store.affine_head("first")) == (True, None)


def test_float16_is_the_rounded_float32(tmp_path: Path, tiny_images: Images) -> None:
    root = tiny_images()
    run(root, tmp_path / "a", dtype="float32")
    run(root, tmp_path / "b", dtype="float16")
    for layer in LAYERS:
        x, y = (LayerReader(tmp_path / name, layer).images(range(10)) for name in "ab")
        assert y.dtype == np.float16
        assert np.array_equal(x.astype(np.float16), y)


def test_what_made_the_store_is_written_down(tmp_path: Path, tiny_images: Images) -> None:
    root = tiny_images()
    run(root, tmp_path / "s", limit=7, seed=3)
    store, loaded = ActivationStore.open(tmp_path / "s"), load_model("tiny_net:build", seed=3)
    made = store.provenance
    assert store.n_images == 7
    for key in ("model", "weights", "weights_digest", "transform"):
        assert made[key] == loaded.provenance[key]
    source = open_folder(root)
    wanted = {"path": str(root), "kind": "class folders", "images": 10, "digest": source.digest, "limit": 7}
    assert made["dataset"] == {**wanted, "class_names": ["cat", "dog"]}
    assert (made["seed"], made["positions"], made["input_size"]) == (3, None, [16, 16])
    assert (made["batch_size"], made["precision"]) == (3, "float32")
    json.dumps(made)


def test_batches_of_any_size_give_the_same(tmp_path: Path, tiny_images: Images) -> None:
    root = tiny_images()
    stores = []
    for size in (1, 2, 4, 64):
        run(root, tmp_path / f"{size}", batch_size=size)
        stores.append(ActivationStore.open(tmp_path / f"{size}"))
    for layer in LAYERS:
        blocks = [LayerReader(store, layer).images(range(10)) for store in stores]
        for block in blocks[1:]:
            near(block, blocks[0])
    run(root, tmp_path / "again", batch_size=4)
    assert contents(tmp_path / "again") == contents(tmp_path / "4")  # to the byte


def test_a_worker_process_changes_no_byte(tmp_path: Path, tiny_images: Images) -> None:
    root = tiny_images()
    open_folder(root).path(6).write_text("no picture")
    options = {"model": "tiny_net:own_transform", "on_bad_image": "skip"}
    run(root, tmp_path / "threads", workers=0, **options)
    run(root, tmp_path / "process", workers=1, **options)
    assert contents(tmp_path / "threads") == contents(tmp_path / "process")


def test_the_class_token_is_separate(tmp_path: Path, tiny_images: Images) -> None:
    root = tiny_images()
    run(root, tmp_path / "s", model="tiny_net:tokens", layers=("block",))
    store = ActivationStore.open(tmp_path / "s")
    assert (store.layer().prefix, store.layer().grid, store.affine_head("block")) == (1, (4, 4), None)
    loaded, source = load_model("tiny_net:tokens"), open_folder(root)
    with torch.no_grad():
        x = loaded.module.embed(torch.stack([loaded.transform(source.image(i)) for i in range(10)]))
        x = torch.cat([loaded.module.start.expand(10, -1, -1), x.flatten(2).transpose(1, 2)], 1)
        wanted = loaded.module.block(x).numpy()
    near(LayerReader(store, prefix=True).images(range(10)), wanted)
    near(LayerReader(store).images(range(10)), wanted[:, 1:])


@pytest.mark.parametrize(("model", "layer"), [("tiny_net:build", "first"), ("tiny_net:tokens", "block")])
def test_sampled_positions_are_those_of_all(tmp_path: Path, tiny_images: Images, model: str, layer: str) -> None:
    root = tiny_images()
    run(root, tmp_path / "all", model=model, layers=(layer,))
    run(root, tmp_path / "some", model=model, layers=(layer,), positions=5)
    run(root, tmp_path / "other", model=model, layers=(layer,), positions=5, batch_size=4, chunk_images=7)
    every = LayerReader(tmp_path / "all").images(range(10))
    some, other = LayerReader(tmp_path / "some"), LayerReader(tmp_path / "other")
    index = some.store.column("labels")  # rows and positions belong together
    assert len(index) == 10
    at = np.concatenate([some.store.array(f"layers/{layer}/positions").read(k) for k in range(3)])
    assert at.shape == (10, 5)
    assert (np.diff(at) > 0).all()
    assert len({tuple(row) for row in at}) > 1
    near(some.images(range(10)), np.take_along_axis(every, at[:, :, None].astype(int), 1))
    near(some.images(range(10)), other.images(range(10)))
    assert np.array_equal(at, zarr.open_array(tmp_path / "other" / "layers" / layer / "positions", mode="r")[:])


def test_sampled_positions_are_uniform() -> None:
    spec = LayerSpec("a", (5, 4), 3, 0, 5)
    drawn = np.stack([sampled_positions(spec, i, 0) for i in range(2000)])
    assert (np.diff(drawn) > 0).all()
    counts = np.bincount(drawn.ravel(), minlength=20)
    assert counts.sum() == 10_000
    assert (np.abs(counts - 500) < 100).all()
    assert not np.array_equal(drawn, np.stack([sampled_positions(spec, i, 1) for i in range(2000)]))


BAD = {
    0: lambda path: path.write_bytes(b""),
    5: lambda path: path.write_text("no picture"),
    6: lambda path: path.write_bytes(path.read_bytes()[:150]),
    9: lambda path: Image.new("L", (400, 400)).save(path),  # above the limit set below
}


@pytest.mark.parametrize("whole_chunk", [False, True])
def test_skipped_images_shift_no_row(
    tmp_path: Path, tiny_images: Images, monkeypatch: pytest.MonkeyPatch, whole_chunk: bool
) -> None:
    root = tiny_images()
    truth = naive(root)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    source = open_folder(root)
    bad = {**BAD, **({4: BAD[5], 7: BAD[5]} if whole_chunk else {})}
    for i, harm in bad.items():
        harm(source.path(i))
    summary = run(root, tmp_path / "s", on_bad_image="skip")
    store = ActivationStore.open(tmp_path / "s")
    good = [i for i in range(10) if i not in bad]
    assert summary.images == len(good)
    assert sorted(entry["row"] for entry in summary.skipped) == sorted(bad)
    for entry in summary.skipped:
        assert entry["name"] == source.name(entry["row"])
        assert entry["name"] in entry["reason"]
    assert [entry["row"] for entry in store.records[1].skipped] == sorted(i for i in bad if 4 <= i < 8)
    assert np.flatnonzero(store.valid).tolist() == good
    assert store.names == [source.name(i) for i in range(10)]
    assert np.isnan(store.logits[list(bad)]).all()
    near(store.logits[good], truth["logits"][good])
    for layer in LAYERS:
        raw = zarr.open_array(tmp_path / "s" / "layers" / layer / "activations", mode="r")[:]
        assert np.isnan(raw[list(bad)]).all()
        near(raw[good], truth[layer][good])
        near(LayerReader(store, layer).images(good), truth[layer][good])


def test_a_bad_image_stops_by_default_and_going_on_works_once_fixed(tmp_path: Path, tiny_images: Images) -> None:
    root = tiny_images()
    run(root, tmp_path / "whole")
    path = open_folder(root).path(9)
    data, times = path.read_bytes(), (path.stat().st_atime, path.stat().st_mtime)
    assert len(data) > 1000
    path.write_bytes(data[:300] + b"\0" * 20 + data[320:])  # what the digest does not see: the dataset is the same
    os.utime(path, times)
    with pytest.raises(
        ImageError,
        match=r"009\.png' cannot be decoded.*It is image 9 of .*Completed chunks stay.*--on-bad-image skip",
    ):
        run(root, tmp_path / "s")
    with pytest.raises(UnsealedStoreError, match="2 of 3 chunks"):
        ActivationStore.open(tmp_path / "s")
    path.write_bytes(data)
    os.utime(path, times)
    assert run(root, tmp_path / "s").done_now == 2
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_a_skipped_image_with_a_name_that_is_not_utf8(tmp_path: Path, tiny_images: Images) -> None:
    root = tiny_images(4)
    try:
        (root / "cat" / "000.png").rename(root / "cat" / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    open_folder(root).path(1).write_text("no picture")
    summary = run(root, tmp_path / "s", on_bad_image="skip")
    assert [entry["name"] for entry in summary.skipped] == ["cat/caf\udce9.png"]
    assert ActivationStore.open(tmp_path / "s").names[1] == "cat/caf\udce9.png"


def bright(root: Path, rows: tuple[int, ...]) -> Path:
    source = open_folder(root)
    for i in range(len(source)):
        Image.new("RGB", (20, 20), (255,) * 3 if i in rows else (0,) * 3).save(source.path(i))
    return root


def test_float16_overflow_names_the_image(tmp_path: Path, tiny_images: Images) -> None:
    root = bright(tiny_images(), (7, 8))
    with pytest.raises(
        NonFiniteError,
        match=r"'first' reaches 2\.7e\+05 on image 'dog/007\.png', more than float16 holds.*--dtype float32",
    ):
        run(root, tmp_path / "s", model="tiny_net:bright_is_huge", dtype="float16")
    with pytest.raises(UnsealedStoreError, match="1 of 3"):
        ActivationStore.open(tmp_path / "s")
    run(root, tmp_path / "t", model="tiny_net:bright_is_huge")
    x = LayerReader(tmp_path / "t", "first").images([6, 7])
    assert (x[0] == 0).all()
    assert x[1].max() == pytest.approx(2.7e5)


@pytest.mark.parametrize("what", ["activations", "logits"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_on_one_image_names_it(
    tmp_path: Path, tiny_images: Images, monkeypatch: pytest.MonkeyPatch, what: str, value: float
) -> None:
    real, calls = Forward.logits, []

    def spoiled(forward: Forward, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        last = len(calls) == 3  # rows 4, 5, 6
        if last and what == "activations":
            images = images.clone()
            images[1] = value
        logits = real(forward, images)
        if last:
            logits = logits.nan_to_num(0) if what == "activations" else logits.index_fill(0, torch.tensor(1), value)
        return logits

    monkeypatch.setattr(Forward, "logits", spoiled)
    with pytest.raises(NonFiniteError, match=rf"NaN or infinite {what} on image 'dog/005\.png'"):
        run(tiny_images(), tmp_path / "s", layers=("first",))
    with pytest.raises(UnsealedStoreError):
        ActivationStore.open(tmp_path / "s")


class Stop(Exception):
    """What stands for a kill here."""


@pytest.mark.parametrize("options", [{}, {"compress": "zstd", "positions": 5, "dtype": "float16"}])
def test_killed_anywhere_and_going_on_is_as_never_stopped(tmp_path: Path, tiny_images: Images, options: dict) -> None:
    root = tiny_images()
    open_folder(root).path(2).write_text("no picture")
    options = {**options, "on_bad_image": "skip"}
    run(root, tmp_path / "whole", **options)
    wanted = contents(tmp_path / "whole")
    after = 0

    def stop(stage: str, done: int, *_: object) -> None:
        if stage == "extraction" and done >= after:
            raise Stop

    for after, chunks in ((3, 0), (4, 1), (6, 1), (8, 2), (9, 3), (10, 3)):
        out = tmp_path / f"{after}"
        with pytest.raises(Stop):
            run(root, out, progress=stop, **options)
        with pytest.raises(UnsealedStoreError, match=f"{chunks} of 3 chunks"):
            ActivationStore.open(out)
        calls: list[tuple[str, int]] = []
        summary = run(root, out, progress=lambda stage, done, *_: calls.append((stage, done)), **options)  # noqa: B023
        assert summary.done_now == 10 - min(10, 4 * chunks)
        assert contents(out) == wanted
        assert not summary.done_now or calls[-1] == ("extraction", 10)
    assert run(root, out, **options).done_now == 0


def test_a_full_disk_is_reported_and_nothing_hangs(
    tmp_path: Path, tiny_images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tiny_images(40)
    run(root, tmp_path / "whole")
    from stores.writer import StoreWriter

    commit = StoreWriter.commit
    for error in (StoreError("the disk is full"), MemoryError("no memory"), RuntimeError("zstd")):

        def fails(self: StoreWriter, chunk: int, error: Exception = error, **rest: object) -> None:
            if chunk == 2:
                raise error
            commit(self, chunk, **rest)

        monkeypatch.setattr(StoreWriter, "commit", fails)
        with pytest.raises(type(error)):
            run(root, tmp_path / "s")
        monkeypatch.undo()
    run(root, tmp_path / "s")
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_lost_chunks_of_a_sealed_store_are_redone(tmp_path: Path, tiny_images: Images) -> None:
    root = tiny_images()
    run(root, tmp_path / "s")
    wanted = contents(tmp_path / "s")
    (tmp_path / "s" / "layers/second/activations/c.1.0.0").unlink()
    assert run(root, tmp_path / "s").done_now == 4
    assert contents(tmp_path / "s") == wanted


def test_a_transform_without_a_name_can_resume(tmp_path: Path, tiny_images: Images) -> None:
    root = tiny_images()
    for _ in range(2):  # its repr tells an address, which is another each time it is made
        keep = load_model("tiny_net:own_transform")
        run(root, tmp_path / "s", model="tiny_net:own_transform")
        assert " at 0x" in repr(keep.transform)
    assert " at 0x" not in ActivationStore.open(tmp_path / "s").provenance["transform"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"seed": 1}, "provenance.seed: 0 → 1"),
        ({"dtype": "float16"}, "dtype: float32 → float16"),
        ({"layers": ("first",)}, "layers: first, act, second → first"),
        ({"limit": 9}, "n_images: 10 → 9"),
        ({"model": "tiny_net:own_transform"}, "provenance.model: tiny_net:build → tiny_net:own_transform"),
        ({"positions": 4}, "stored_positions"),
    ],
)
def test_another_extraction_into_the_same_store_is_refused(
    tmp_path: Path, tiny_images: Images, options: dict, wanted: str
) -> None:
    root = tiny_images()
    run(root, tmp_path / "s")
    before = contents(tmp_path / "s")
    with pytest.raises(StoreExistsError, match=wanted):
        run(root, tmp_path / "s", **options)
    assert contents(tmp_path / "s") == before
    run(root, tmp_path / "s", overwrite=True, **options)
    assert contents(tmp_path / "s") != before


def test_transforms_that_fail_end_in_one_message(tmp_path: Path, tiny_images: Images) -> None:
    root = tiny_images()
    Image.new("RGB", (5, 5)).save(open_folder(root).path(4))
    with pytest.raises(UsageError, match=r"transform fails on image 'cat/004\.png': RuntimeError: too small for me"):
        run(root, tmp_path / "s", model="tiny_net:picky", on_bad_image="skip")
    with pytest.raises(UsageError, match="all must reach the network in one size"):
        run(root, tmp_path / "t", model="tiny_net:unresized", layers=("second",), batch_size=4, chunk_images=10)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"layers": ()}, "No layer was named"),
        ({"layers": ("a", "a")}, "A layer is named twice"),
        ({"batch_size": 0}, "'batch_size' must be at least 1, got 0"),
        ({"limit": -1}, "'limit' must be at least 1"),
        ({"workers": -1}, "'workers' must not be negative"),
        ({"seed": -1}, "'seed' must not be negative"),
        ({"dtype": "float64"}, "'dtype' must be one of float16, float32, got 'float64'"),
        ({"precision": "tf32"}, "'precision' tf32 needs a CUDA device, got 'cpu'"),
        ({"device": "cuda:x"}, "--device must be auto, cpu, cuda or cuda:N, got 'cuda:x'"),
        ({"on_bad_image": "ignore"}, "'on_bad_image' must be one of skip, fail"),
    ],
)
def test_impossible_options(options: dict, wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        ExtractConfig(**{"model": "m", "layers": ("a",), **options})
