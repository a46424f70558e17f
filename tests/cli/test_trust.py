"""A store, and whatever else comes from somebody else, has no code run that the user did not name on the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Run, do, fails, ok
from tiny import edit_attributes, write_broden

from extract.network import open_model, open_network
from fit import EDDP
from stores.errors import UsageError
from stores.store import ActivationStore

EVIL = "from pathlib import Path\nMARK = Path(__file__).resolve().parent / 'ran'\nMARK.touch()\n\n\ndef run():\n    MARK.touch()\n    from tiny_net import build\n    return build()\n"
TRUSTED = ("--model", "tiny_net:build")


def rename(store: Path, **provenance: str) -> None:
    """Say something else of a store's model, with a seal that agrees."""
    edit_attributes(store, lambda attributes: attributes["provenance"].update(provenance))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a module that leaves a mark when it is imported, and a store whose head is the model itself; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "package").mkdir()
    for name in ("evilmod.py", "package/inner.py", "package/__init__.py"):
        (folder / name).write_text(EVIL)
    (folder / "linked.py").symlink_to("evilmod.py")
    (folder / "names").write_text("0\n1\n2\n3\n4\n")
    data = write_broden(folder / "broden").root
    for k in "01":
        (folder / "clean" / k).mkdir(parents=True)
        for file in sorted(data.rglob("*.jpg"))[:4]:
            shutil.copy(file, folder / "clean" / k)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        do("extract --model tiny_net:build --layer first --data broden --out acts.zarr --class-names names")
        do("fit --store acts.zarr --directions 3 --method kmeans --out d.safetensors")
        do("evaluate --store acts.zarr --directions d.safetensors --monosemanticity")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of it, which is the working directory."""
    shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("evilmod", "package", "package.inner", "linked"):
        sys.modules.pop(name, None)


COMMANDS = {
    "fit": ("fit", "--store", "acts.zarr", "--directions", 3, "--out", "e.safetensors", "--set", "refine_steps=2", "--refits", 0),
    "fit --method probe": ("fit", "--store", "acts.zarr", "--method", "probe", "--concepts", "broden", "--out", "e.safetensors"),
    "evaluate --broden": ("evaluate", "--store", "acts.zarr", "--directions", "d.safetensors", "--broden", "broden", "--out", "e"),
    "evaluate --influence": ("evaluate", "--store", "acts.zarr", "--directions", "d.safetensors", "--influence", "--out", "e"),
    "explain": ("eddp", "explain", "--row", 0, "--evaluation", "evaluation", "--out", "e"),
    "report": ("eddp", "report", "evaluation", "--visualize", 1, "--out", "e"),
    "correct": ("eddp", "correct", "evaluation", "--data", "clean", "--direction", 0, "--out", "e"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_code_that_a_store_names_is_not_run(run: Run, place: Path, command: tuple[object, ...]) -> None:
    rename(place / "acts.zarr", model="evilmod:run")
    ended = run(*command)
    fails(
        ended,
        2,
        "That is code, which would be imported and run.",
        "repeat the command with --model evilmod:run",
    )
    assert not (place / "ran").exists()
    assert not [*place.glob("e"), *place.glob("e.safetensors")]


@pytest.mark.parametrize(
    "name",
    ["linked:run", "package.inner:run", ".package:run", "..package:run", "package/inner:run", "os:abort", "code:interact",
     "TIMM:resnet18", " timm:resnet18", "pipeline.scene_net:train_scene_net", "pipeline.scene_net:scene_net:", "a:b; touch ran", "a\x1b[2J:b"],
)  # fmt: skip
def test_whatever_it_is_called(run: Run, place: Path, name: str) -> None:
    rename(place / "acts.zarr", model=name)
    for command in (COMMANDS["fit"], COMMANDS["explain"]):
        ended = run(*command)
        fails(ended, 2, "That is code")
        assert "\x1b" not in ended.err
    assert not list(place.rglob("ran"))


def test_a_report_goes_without_pictures(run: Run, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    rename(place / "acts.zarr", model="evilmod:run")
    again = ("evaluate --store acts.zarr --directions d.safetensors --monosemanticity --out again",)
    for command in (("eddp report evaluation --out e",), again):
        said = ok(run(*command)).err + caplog.text
        assert said.count("The images are not shown. The store") == 1
        assert "--model evilmod:run" in said
    assert not (place / "ran").exists()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_users_word(run: Run, place: Path, command: tuple[object, ...]) -> None:
    ok(run(*command, *TRUSTED))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_users_word_on_another_model(run: Run, place: Path, command: tuple[object, ...]) -> None:
    rename(place / "acts.zarr", model="evilmod:run")
    fails(run(*command, *TRUSTED), 2, "names the model 'evilmod:run', not 'tiny_net:build' (--model)")
    assert not (place / "ran").exists()


@pytest.mark.parametrize("command", ["fit", "evaluate --influence", "report", "explain", "correct"])
def test_only_what_is_typed_is_the_users_word(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    rename(place / "acts.zarr", model="evilmod:run")
    words = COMMANDS[command]
    name = words[1] if words[0] == "eddp" else words[0]
    (place / "theirs.toml").write_text(f"[{name}]\nmodel = 'evilmod:run'\n")
    fails(run(*words, "--config", "theirs.toml"), 2, "it is taken only from the command line")
    monkeypatch.setenv(f"EDDP_{str(name).upper()}_MODEL", "evilmod:run")
    fails(run(*words), 2, f"(EDDP_{str(name).upper()}_MODEL)")
    assert not (place / "ran").exists()


def test_what_is_next_to_a_store(run: Run, place: Path) -> None:
    """Activations on other images are kept beside the store: by then somebody else may have written them."""
    words = COMMANDS["correct"]
    assert run(*words, *TRUSTED).code == 0
    [beside] = place.glob("acts.first.*.zarr")
    rename(beside, model="evilmod:run")
    fails(run(*words, *TRUSTED), 2, "names the model 'evilmod:run', not 'tiny_net:build'")
    assert not (place / "ran").exists()


def test_weights_are_no_address(run: Run, place: Path) -> None:
    """A store says which weights: a file here, or a name of the zoo; what is neither is not fetched."""
    for weights in ("https://example.org/w.pth", "s3://bucket/w.pth", "file:///etc/passwd", "hf-hub:a/b"):
        rename(place / "acts.zarr", model="resnet18", weights=weights)
        ended = run(*COMMANDS["explain"])
        assert ended.code == 2, ended.err
        assert "There is no weights file" in ended.err or "has no weights" in ended.err


def test_from_python(place: Path) -> None:
    path = place / "acts.zarr"
    with pytest.raises(UsageError, match=r"ActivationStore\.open\(path, model=…\)"):
        EDDP(n_directions=3).fit(path)
    store = ActivationStore.open(path, model="tiny_net:build")
    assert open_network(store, "first").layer == "first"
    with pytest.raises(UsageError, match="That is code"):
        open_model(ActivationStore.open(path))


def test_the_demos_network_is_the_installed_one(place: Path) -> None:
    """A folder called like our package, which Python would search first, is not where the demo's network comes from."""
    rename(place / "acts.zarr", model="pipeline.scene_net:scene_net")
    code = "import os, sys\nfrom extract.network import open_model\nfrom stores.store import ActivationStore\n"
    code += "sys.path.insert(0, '')\ntry:\n    open_model(ActivationStore.open('acts.zarr'))\n"
    code += "finally:\n    print(os.getcwd() in sys.path)  # what is imported later is not searched there either\n"
    for shadowed, said in ((False, "loads with other weights"), (True, "That is code")):
        if shadowed:
            (place / "pipeline").mkdir()
            (place / "pipeline" / "__init__.py").write_text("")
            (place / "pipeline" / "scene_net.py").write_text(EVIL.replace("run()", "scene_net()"))
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False, timeout=120,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert said in ended.stderr
        assert ended.stdout == "False\n"
    assert not list(place.rglob("ran"))
