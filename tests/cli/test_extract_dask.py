"""``extract --dask`` with three real worker processes: one is killed in the midst of its chunk, errors, work that is done twice."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import fateful_net
import pytest
from command_line import Run, fails, ok
from own_process import EDDP, start
from PIL import Image
from tiny import contents

import extract.dask
from extract.dask import Order, cluster, extract_on, fill_part
from extract.datasets import open_source
from extract.plan import plan_extraction
from extract.stream import ExtractConfig
from extract.stream import extract as extract_here
from stores.errors import EDDPError, ImageError, NonFiniteError, StoreError, UnsealedStoreError
from stores.manifest import commit_file
from stores.store import ActivationStore
from stores.writer import StoreWriter

NET = ("--model", "tiny_net:build", "--layer", "second")
CONFIG: dict[str, Any] = {
    "model": "tiny_net:build", "layers": ("second", "act"), "chunk_images": 4, "batch_size": 3, "workers": 0, "positions": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def fate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the worker that meets the black image says who it is."""
    file = tmp_path_factory.mktemp("fate") / "process"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fateful_net.FILE, str(file))
        yield file


@pytest.fixture(scope="module")
def client(fate: Path) -> Iterator[Any]:
    """Three worker processes, as ``--dask local`` starts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract.dask, "cores", lambda: 3)
        with cluster("local") as client:
            client.wait_for_workers(3)
            yield client


@pytest.fixture
def address(client: Any) -> str:
    return str(client.scheduler.address)


def test_a_worker_that_is_killed_in_the_midst_of_its_chunk_changes_nothing(
    tmp_path: Path, tiny_images: Callable[..., Path], client: Any, fate: Path
) -> None:
    root = tiny_images(40)
    black = 22  # the third image of chunk 5, and none that is looked at while planning
    name = sorted(root.rglob("*.png"))[black]
    Image.new("RGB", (20, 20)).save(name)
    config = ExtractConfig(**{**CONFIG, "model": "fateful_net:build"})
    source, out = open_source(root), tmp_path / "s.zarr"
    killed: list[int] = []
    told: list[tuple[str, int, int | None]] = []

    def kill() -> None:
        while not (fate.exists() and fate.read_text().endswith("\n")):
            time.sleep(0.01)
        killed.append(int(fate.read_text()))
        assert not commit_file(out, black // 4).exists()
        os.kill(killed[0], signal.SIGKILL)

    def progress(stage: str, done: int, total: int | None = None, note: str = "") -> None:
        told.append((stage, done, total))

    before = set(client.run(os.getpid).values())
    watcher = threading.Thread(target=kill, daemon=True)
    watcher.start()
    begun = time.monotonic()
    summary = extract_on(client, source, str(root), out, config, progress=progress)
    assert time.monotonic() - begun < fateful_net.STAYS
    watcher.join(5)
    assert killed[0] in before
    assert killed[0] not in set(client.run(os.getpid).values())
    assert ActivationStore.open(out).verify() == []
    alone = extract_here(source, tmp_path / "whole.zarr", config)
    assert contents(out) == contents(tmp_path / "whole.zarr")
    assert summary == alone
    assert told[0][0] == "loading the model"
    assert told[-1] == ("extraction", 40, 40)


def test_two_runs_at_once_of_the_same_are_one(tmp_path: Path, tiny_images: Callable[..., Path], client: Any) -> None:
    """Every part is done twice: by the worker that comes first, while the other waits for the chunks."""
    root, config = tiny_images(16), ExtractConfig(**{**CONFIG, "model": "tiny_net:slow"})
    out, source = tmp_path / "s.zarr", open_source(root)
    under_way = threading.Event()

    def progress(stage: str, done: int, total: int | None = None, note: str = "") -> None:
        if stage == "extraction":  # from here on this thread only waits: torch.fx cannot trace in two at once
            under_way.set()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(extract_on, client, source, str(root), out, config, progress=progress)
        assert under_way.wait(120)
        second = extract_on(client, source, str(root), out, config)
        first = future.result()
    assert first.images == second.images == 16
    extract_here(source, tmp_path / "whole.zarr", config)
    assert contents(out) == contents(tmp_path / "whole.zarr")
    written = {name: (out / name).stat().st_mtime_ns for name in contents(out)}
    again = extract_on(client, source, str(root), out, config)  # late
    assert (again.done_now, again.images, again.missing) == (0, 16, 0)
    assert {name: (out / name).stat().st_mtime_ns for name in contents(out)} == written


def test_what_no_one_waits_for_lets_go_of_its_chunks(
    tmp_path: Path, tiny_images: Callable[..., Path], client: Any
) -> None:
    root, out = tiny_images(100), tmp_path / "s.zarr"
    config = ExtractConfig(**{**CONFIG, "model": "tiny_net:slow", "positions": None})
    plan = plan_extraction(open_source(root), config)
    StoreWriter.open(out, plan.store).close()
    future = client.submit(fill_part, Order("eddp-test", str(root), str(out), config), (0, 1), pure=False)
    while not list(out.glob("commits/*.json")):
        time.sleep(0.05)
        assert future.status == "pending"
    with pytest.raises(StoreError, match="Another process is writing"):
        StoreWriter.open(out, plan.store)
    future.cancel()
    until = time.monotonic() + 10
    while True:
        try:
            with closing(StoreWriter.open(out, plan.store)) as writer:
                assert 0 < len(writer.missing()) < 25
            break
        except StoreError:
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize(("model", "spoilt"), [("tiny_net:build", True), ("tiny_net:bright_is_huge", False)])
def test_errors_of_workers_are_those_of_one_process(
    tmp_path: Path, tiny_images: Callable[..., Path], client: Any, model: str, spoilt: bool
) -> None:
    root = tiny_images(12)
    bad = root / "dog" / "009.png"
    if spoilt:
        bad.write_text("no picture")
        kind: type[EDDPError] = ImageError
    else:
        Image.new("RGB", (20, 20), (255, 255, 255)).save(bad)
        kind = NonFiniteError
    for i in range(12):
        if not spoilt and i != 9:
            Image.new("RGB", (20, 20)).save(root / ("cat", "dog")[i * 2 // 12] / f"{i:03d}.png")
    layers = ("second",) if spoilt else ("first",)
    config = ExtractConfig(**{**CONFIG, "model": model, "layers": layers, "batch_size": 1})
    source = open_source(root)
    with pytest.raises(kind) as alone:
        extract_here(source, tmp_path / "whole", config)
    with pytest.raises(kind) as spread:
        extract_on(client, source, str(root), tmp_path / "s", config)
    assert str(spread.value) == str(alone.value)
    with pytest.raises(UnsealedStoreError):
        ActivationStore.open(tmp_path / "s")
    if spoilt:  # and it goes on, here or there
        skipping = ExtractConfig(
            **{**CONFIG, "model": model, "layers": layers, "batch_size": 1, "on_bad_image": "skip"}
        )
        summary = extract_on(client, source, str(root), tmp_path / "s", skipping)
        assert [entry["row"] for entry in summary.skipped] == [9]
        assert extract_here(source, tmp_path / "whole", skipping).skipped == summary.skipped
        assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_the_command_gives_the_store_of_one_process(
    run: Run, tmp_path: Path, tiny_images: Callable[..., Path], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_images(40)
    monkeypatch.chdir(tmp_path)  # where no worker is: what is relative is said in full
    monkeypatch.setattr("stores.layout.TARGET_CHUNK_BYTES", 2048)
    plain = run("extract", *NET, "--data data --out plain.zarr --json --quiet")
    ended = ok(run("extract", *NET, "--data folder:data --out spread.zarr --json --quiet --dask", address))
    assert ended.err == ""
    found, alone = json.loads(ended.out), json.loads(plain.out)
    for key in set(alone) - {"store", "seconds", "seconds_waiting_for_images"}:
        assert found[key] == alone[key], key
    assert len(Path("spread.zarr/manifest.jsonl").read_bytes().splitlines()) == 1 + 5
    assert contents(Path("spread.zarr")) == contents(Path("plain.zarr"))
    assert json.loads(Path("spread.zarr.run.json").read_text())["options"]["dask"] == address
    looked = run("extract", *NET, "--data data --out other.zarr --json --dry-run --dask", address)
    assert json.loads(looked.out)["rate"] > 0
    assert not Path("other.zarr").exists()
    fails(run("extract", *NET, "--data data --out spread.zarr --seed 1 --dask", address), 2, "--overwrite")
    ok(run("extract", *NET, "--data data --out spread.zarr --seed 1 --overwrite --dask", address))
    assert ActivationStore.open(Path("spread.zarr")).provenance["seed"] == 1


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (("--dask", "tcp://127.0.0.1:9"), 1, "No dask scheduler answers at 'tcp://127.0.0.1:9' (--dask)."),
        (("--dask", "local", "--shard", "0/2"), 2, "--dask shares the store out among its workers"),
        (("--dask", "local", "--shard", "auto"), 2, "--dask shares the store out among its workers"),
    ],
)
def test_wrong_use_is_one_message(
    run: Run, tmp_path: Path, tiny_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...], code: int, told: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(extract.dask, "PATIENCE", 0.5)
    ended = run("extract", *NET, "--data", tiny_images(2), "--out", tmp_path / "s", "--quiet", *options)
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith(f"Error: {told}")
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_a_worker_without_the_device_is_reported(
    run: Run, tmp_path: Path, tiny_images: Callable[..., Path], address: str
) -> None:
    options = ("--data", tiny_images(2), "--out", tmp_path / "s", "--quiet", "--dask", address)
    ended = run("extract", *NET, *options, "--device cuda:7")
    assert "--device cuda:7: The dask worker at" in ended.err
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_interrupted_at_the_keyboard_it_ends_with_one_message(tmp_path: Path, tiny_images: Callable[..., Path]) -> None:
    """Ctrl-C reaches the workers as well, which belong to the same terminal."""
    out = tmp_path / "s.zarr"
    words = ("extract", "--model", "tiny_net:slow", "--layer", "second", "--data", tiny_images(400), "--out", out,
             "--batch-size", 1, "--quiet", "--dask", "local")  # fmt: skip
    process = start(*words, code=EDDP, own_session=True)
    while not (out / "zarr.json").exists():
        time.sleep(0.05)
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    printed, told = process.communicate(timeout=120)
    assert (process.returncode, printed) == (130, "")
    assert told.strip() == "Interrupted. What was committed is stored: run the same command again to resume."
    assert out.exists()
