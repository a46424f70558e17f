"""Building the world: who is drawn (the plan), by whom (worker processes), and what is written when all is drawn.

A picture depends on the world's seed and its own number alone, so the files are the same bytes whatever the number
of workers. Work happens in a hidden folder beside ``out`` that takes its name only when complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from extract.worker_processes import end_with_parent
from pipeline.world.broden_writer import Row, save_jpeg, write_picture, write_tables
from pipeline.world.mark import stamp
from pipeline.world.scene_labels import MARKED_SCENE, SCENES, WATERMARK
from pipeline.world.scenes import draw_scene
from stores.errors import StoreExistsError, UsageError
from stores.progress import Progress, silent

log = logging.getLogger(__name__)

_BATCH = 8
_SMALL = 160  # below this many pictures, starting workers costs more than they save


@dataclass(frozen=True)
class World:
    """What a world on disk is made of; ``world.json`` holds all of it but ``root``.

    ``labels`` name -> number of images that carry it; ``code`` the digest of the code that drew it.
    """

    root: Path
    images: int
    size: int
    seed: int
    scenes: tuple[str, ...]
    marked_scene: str
    mark: str
    train: int
    val: int
    marked_train: int
    marked_val: int
    poisoned: int
    labels: dict[str, int]
    code: str

    @property
    def folders(self) -> Path:
        """Class folders ``train/<scene>`` and ``val/<scene>``."""
        return self.root / "folders"

    @property
    def clean_folder(self) -> Path:
        """Class folders of the validation images that do not carry the mark."""
        return self.root / "clean"

    @property
    def poisoned_folder(self) -> Path:
        """Class folders of all validation images, every one with the mark on it."""
        return self.root / "poisoned"


@dataclass(frozen=True)
class Item:
    """One picture of the plan."""

    index: int
    scene: str
    split: str
    marked: bool

    @property
    def stem(self) -> str:
        return f"{self.scene}/{self.index:05d}"


def plan(index: int) -> Item:
    """What picture ``index`` is: scenes take turns, every fourth of a scene is val, every second of a split marked."""
    turn, scene = index // len(SCENES), SCENES[index % len(SCENES)]
    val = turn % 4 == 1
    order = turn // 4 if val else turn - (turn + 2) // 4  # its place among its scene's pictures of its split
    return Item(index, scene, "val" if val else "train", marked=scene == MARKED_SCENE and order % 2 == 0)


def draw(root: Path, item: Item, size: int, seed: int) -> Row:
    """Draw one picture and write its files below ``root``."""
    canvas = draw_scene(item.scene, size, seed, item.index, marked=item.marked)
    row = write_picture(root, item.stem, item.split, canvas.picture(), canvas.masks(), item.scene)
    source = root / "images" / row.image
    _link(source, root / "folders" / item.split / row.image)
    if item.split == "val":
        if item.marked:
            _link(source, root / "poisoned" / row.image)
        else:
            _link(source, root / "clean" / row.image)
            stamp(canvas, np.random.default_rng([seed, item.index, 1]))
            save_jpeg(canvas.picture(), root / "poisoned" / row.image)
    return row


def _draw_batch(root: Path, items: list[Item], size: int, seed: int) -> list[Row]:
    return [draw(root, item, size, seed) for item in items]


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends the pool
    end_with_parent()


def _start_pool(workers: int) -> ProcessPoolExecutor | None:
    """The processes that draw, the first of them started; None for one worker.

    Spawned, because forking a process that has run torch or Zarr may deadlock. A spawned process imports the main
    script again: where that has no main guard, it comes back to this line and ends here, before it touches the disk.
    """
    if workers == 1:
        return None
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    pool.submit(int)
    return pool


def _draw_all(
    root: Path, items: list[Item], size: int, seed: int, pool: ProcessPoolExecutor | None, progress: Progress
) -> Iterator[Row]:
    """Yield every item's row, in any order."""
    stage = "drawing the world"
    done = 0
    if pool is not None:
        batches = [items[k : k + _BATCH] for k in range(0, len(items), _BATCH)]
        drawn: set[int] = set()
        try:
            pending = {pool.submit(_draw_batch, root, batch, size, seed): batch for batch in batches}
            while pending:
                finished, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in finished:
                    rows = future.result()
                    drawn |= {item.index for item in pending.pop(future)}
                    done += len(rows)
                    yield from rows
                progress(stage, done, len(items))
            return
        except BrokenProcessPool:
            # a script without a main guard, or a worker killed from outside: what is left is drawn here
            log.warning("the worker processes ended early; going on in this process")
            items = [item for item in items if item.index not in drawn]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    total = done + len(items)
    for k, item in enumerate(items, done + 1):
        for path in (*(root / "folders").glob(f"*/{item.stem}.jpg"), *root.glob(f"*/{item.stem}.jpg")):
            path.unlink()  # left by a worker that ended within this picture
        yield draw(root, item, size, seed)
        progress(stage, k, total)


def _link(source: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, link)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, link)


def _code_digest() -> str:
    """Digest of this package's source: another code draws another world."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def read_world(root: Path) -> World:
    """The world that was built in ``root``. Raises: UsageError when there is none."""
    path = Path(root) / "world.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return World(root=Path(root), **{**stored, "scenes": tuple(stored["scenes"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"'{root}' holds no generated world ({path.name} cannot be read): build one first") from error


def _available_workers() -> int:
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def build_world(
    out: Path,
    *,
    images: int = 2400,
    size: int = 96,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress = silent,
) -> World:
    """Draw a world of labelled scenes and write it in Broden's format, as class folders, and with a planted mark.

    Parameters
    ----------
    out: the folder to make. If it already holds this very world, nothing is drawn.
    images: pictures in all, dealt out to the scenes in turn; three quarters are train, one quarter val.
    size: height and width of a picture in pixels, even; masks have half of it.
    seed: of the whole world; the same seed gives the same bytes whatever the number of workers.
    workers: processes that draw; as many as there are processors when None, and none for a small world.
    progress: called at least twice a second.

    Returns: the world's description, as in ``world.json``.
    Raises: UsageError for a size or number that cannot be; StoreExistsError when ``out`` holds something else.
    """
    out = Path(out)
    wrong = []
    if images < 2 * len(SCENES):
        wrong.append(f"'images' must be at least {2 * len(SCENES)} (train and val of every scene), got {images}")
    if size < 32 or size % 2:
        wrong.append(f"'size' must be even and at least 32, got {size}")
    if seed < 0:
        wrong.append(f"'seed' must not be negative, got {seed}")
    if workers is not None and workers < 1:
        wrong.append(f"'workers' must be at least 1, got {workers}")
    if wrong:
        raise UsageError("; ".join(wrong))
    code = _code_digest()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            there = read_world(out)
        except UsageError:
            raise StoreExistsError(f"'{out}' exists and is no generated world: name another folder") from None
        if (there.images, there.size, there.seed, there.code) == (images, size, seed, code):
            return there
        raise StoreExistsError(
            f"'{out}' holds another world (images {there.images}, size {there.size}, seed {there.seed}, "
            f"code {there.code}): remove it or name another folder"
        )
    if workers is None:
        workers = 1 if images < _SMALL else _available_workers()
    items = [plan(index) for index in range(images)]
    pool = _start_pool(workers)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        rows = {row.image: row for row in _draw_all(partial, items, size, seed, pool, progress)}
        labels = write_tables(partial, [rows[f"{item.stem}.jpg"] for item in items])
        marks = {split: sum(item.marked for item in items if item.split == split) for split in ("train", "val")}
        world = World(
            root=out,
            images=images,
            size=size,
            seed=seed,
            scenes=SCENES,
            marked_scene=MARKED_SCENE,
            mark=WATERMARK,
            train=sum(item.split == "train" for item in items),
            val=sum(item.split == "val" for item in items),
            marked_train=marks["train"],
            marked_val=marks["val"],
            poisoned=sum(item.split == "val" for item in items),
            labels=labels,
            code=code,
        )
        stored = {key: value for key, value in asdict(world).items() if key != "root"}
        (partial / "world.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return world
