"""The store's promises, held against a model by random histories: written, killed, resumed, damaged, read, verified.

The model knows which chunks are committed. Whatever happened before, a store opens only when it is whole and sealed, gives
then exactly what was written, names what is missing otherwise, and never shows a chunk that was not written as zeros.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tiny import contents, fill, open_writer, write_store

from stores import io
from stores.errors import CorruptStoreError, MissingPathError, StoreError, UnsealedStoreError
from stores.format import LayerSpec
from stores.layout import shard_chunks
from stores.readers import LayerReader
from stores.store import ActivationStore
from stores.writer import StoreWriter

N, ROWS = 11, 2
CHUNKS = -(-N // ROWS)
X = {"a": np.random.default_rng(0).normal(size=(N, 4, 3)).astype(np.float32) + 3}
X["s"] = X["a"][:, :2] * 2
OPTIONS = {
    "chunk_images": ROWS,
    "specs": {"a": LayerSpec("a", (2, 2), 3), "s": LayerSpec("s", (2, 2), 3, 0, 2)},
    "heads": {"a": (np.ones((3, 3), np.float32), np.zeros(3, np.float32))},
}
VALID = np.arange(N) != 6
CONTENT = {"positions": {"s": np.tile([0, 3], (N, 1))}, "valid": VALID}
WHOLE: dict[str, dict[str, bytes]] = {}  # the files of a sealed store, by its codec
SHARDS = [None, (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


class Killed(BaseException):
    """What stands for SIGKILL: nothing tidies up after it."""


class Stores(RuleBasedStateMachine):
    """One store, any number of writers."""

    codec = "none"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="eddp-conformance-"))
        self.path = self.folder / "s"
        if self.codec not in WHOLE:
            WHOLE[self.codec] = contents(write_store(self.folder / "w", X, compress=self.codec, **OPTIONS, **CONTENT))
        self.whole = WHOLE[self.codec]
        self.writers: list[StoreWriter] = []
        self.committed: set[int] = set()
        self.sealed = False

    def teardown(self) -> None:
        for writer in self.writers:
            writer.close()
        shutil.rmtree(self.folder)

    @initialize()
    def lay_out(self) -> None:
        self.open_a_writer(None)

    @rule(shard=st.sampled_from(SHARDS))
    def open_a_writer(self, shard: tuple[int, int] | None) -> None:
        span = range(CHUNKS) if shard is None else shard_chunks(shard, CHUNKS)
        taken = any(set(span) & set(writer.span) for writer in self.writers)
        try:
            writer = open_writer(self.path, X, compress=self.codec, shard=shard, **OPTIONS)
        except StoreError as error:
            message = str(error)
            assert taken == ("Another process is writing" in message)
        else:
            assert not taken
            self.writers.append(writer)
            self.sealed = self.sealed and not writer.missing()  # what is gone of a sealed store is to be done again
            assert writer.missing() == [k for k in span if k not in self.committed]

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def commit_a_chunk(self, data: st.DataObject) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        if left := writer.missing():
            k = data.draw(st.sampled_from(left))
            fill(writer, X, chunks=[k], **CONTENT)
            self.committed.add(k)

    @precondition(lambda self: self.writers)
    @rule(data=st.data(), at=st.integers(0, 40), half=st.booleans())
    def be_killed_in_a_commit(self, data: st.DataObject, at: int, half: bool) -> None:
        """At any of the steps: some are in the background, and the rename of the record is what counts."""
        writer = data.draw(st.sampled_from(self.writers))
        k = data.draw(st.sampled_from(list(writer.span))) if len(writer.span) else None
        if k is None or self.sealed:
            return
        steps = 0
        real = {name: getattr(io, name) for name in ("write_bytes", "rename", "sync_folder")}

        def step(name: str) -> None:
            nonlocal steps
            steps += 1
            if steps > at:
                raise Killed

        def killing(name: str):
            def call(*arguments):
                if name == "write_bytes" and half and steps >= at:
                    handle, block = arguments
                    real[name](handle, memoryview(block).cast("B")[: len(block) // 2])
                    raise Killed
                step(name)
                real[name](*arguments)

            return call

        before = set(writer.committed())
        self.committed.discard(k)
        with pytest.MonkeyPatch.context() as patch:
            for name in real:
                patch.setattr(io, name, killing(name))
            patch.setattr(io.Together, "__exit__", lambda *_: None)
            try:
                fill(writer, X, chunks=[k], **CONTENT)
                self.committed.add(k)
            except Killed:
                writer.close()
                self.writers.remove(writer)
        after = writer.committed()
        assert set(after) ^ before <= {k}
        if k in after and writer.is_there(after[k]):
            self.committed.add(k)

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def seal_if_complete(self, data: st.DataObject) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        self.sealed = writer.seal_if_complete()
        assert self.sealed == (len(self.committed) == CHUNKS)

    @precondition(lambda self: self.writers)
    @rule(data=st.data())
    def close_a_writer(self, data: st.DataObject) -> None:
        writer = data.draw(st.sampled_from(self.writers))
        writer.close()
        self.writers.remove(writer)

    @precondition(lambda self: self.committed and not self.writers)
    @rule(data=st.data(), harm=st.sampled_from(["gone", "short"]))
    def lose_a_chunk(self, data: st.DataObject, harm: str) -> None:
        k = data.draw(st.sampled_from(sorted(self.committed)))
        file = self.path / "layers/a/activations" / f"c.{k}.0.0"
        if harm == "gone":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-1])
        self.committed.discard(k)
        if self.sealed:
            with pytest.raises(CorruptStoreError):
                ActivationStore.open(self.path)

    @precondition(lambda self: self.sealed)
    @rule(data=st.data(), bits=st.integers(1, 255))
    def flip_a_byte_and_back(self, data: st.DataObject, bits: int) -> None:
        if len(self.committed) < CHUNKS:
            return
        file = self.path / data.draw(st.sampled_from(sorted(self.whole)))
        good = file.read_bytes()
        i = data.draw(st.integers(0, len(good) - 1))
        file.write_bytes(good[:i] + bytes([good[i] ^ bits]) + good[i + 1 :])
        try:
            problems = ActivationStore.open(self.path).verify()
        except (StoreError, MissingPathError) as error:
            problems = [str(error)]
        file.write_bytes(good)
        assert problems

    @invariant()
    def it_opens_only_when_it_is_whole(self) -> None:
        if not (self.path / "zarr.json").exists():
            return
        if self.sealed and len(self.committed) == CHUNKS:
            store = ActivationStore.open(self.path)
            assert store.verify() == []
            for name, x in X.items():
                reader = LayerReader(store, name)
                assert np.array_equal(reader.images(np.flatnonzero(VALID)), x[VALID])
            if not self.writers:
                assert contents(self.path) == self.whole
        elif not self.sealed:
            with pytest.raises(UnsealedStoreError):
                ActivationStore.open(self.path)

    @invariant()
    def what_was_not_written_is_never_zeros(self) -> None:
        if not (self.path / "zarr.json").exists():
            return
        seen = zarr.open_array(self.path / "layers/a/activations", mode="r")
        for k in range(CHUNKS):
            file = self.path / "layers/a/activations" / f"c.{k}.0.0"
            if not file.exists():
                part = seen[k * ROWS : (k + 1) * ROWS]
                assert np.isnan(part).all()


class CompressedStores(Stores):
    codec = "zstd"


limits = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestUncompressed = Stores.TestCase
TestUncompressed.settings = limits
TestCompressed = CompressedStores.TestCase
TestCompressed.settings = limits
