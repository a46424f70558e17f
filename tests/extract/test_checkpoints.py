import argparse
import collections
import datetime
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from extract.checkpoints import find_file, load_weights
from extract.config import ExtractConfig
from extract.datasets import open_source
from extract.models import load_model, torchvision
from extract.plan import plan_extraction
from stores.errors import MissingPathError, WeightsError

NET = "squeezenet1_1"  # small: 1.2 million parameters
State = dict[str, torch.Tensor]


class Tiny(nn.Module):
    def __init__(self, classes: int = 3, **keywords: object) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))  # a name that wrappers use, too
        self.fc = nn.Linear(4, int(keywords.get("num_classes", classes)))


def state(fill: float = 1.0) -> State:
    return {name: torch.full_like(tensor, fill) for name, tensor in Tiny().state_dict().items()}


def before(prefix: str, fill: float = 1.0) -> State:
    return {prefix + name: tensor for name, tensor in state(fill).items()}


def loaded(content: object, path: Path, key: str = "") -> tuple[float, str]:
    """Save a checkpoint and load it: what the tensors were filled with, and the source without the folder."""
    torch.save(content, path)
    module, source = load_weights(Tiny, path, key)
    (value,) = {float(tensor.flatten()[0]) for tensor in module.state_dict().values()}
    found = find_file(source)
    assert found is not None
    again, same = load_weights(Tiny, *found)
    assert same == source
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), again.state_dict().values(), strict=True)
    )
    return value, source.removeprefix(f"{path.parent.resolve()}/")


ADAM = {"state": {0: {"exp_avg": torch.zeros(4, 3, 3, 3)}}, "param_groups": [{"params": [0]}]}
TIMES = {"total_ops": torch.zeros(1), "model.0.total_params": torch.zeros(1)}  # thop's


@pytest.mark.parametrize(
    "content",
    [
        state(),
        {"state_dict": before("module.")},
        before("_orig_mod.module."),
        {"state_dict": before("model."), "pytorch-lightning_version": "2.4.0"},
        {"state_dict": before("module.backbone.")},
        {"weights": state(), "optimizer": ADAM},
        {"trainer": {"state": {"net": state()}}},
        {"ema": state(), "epoch": 1},
        {"module": state(), "ds_version": "0.14"},
        {**state(), **TIMES},
        torch.optim.swa_utils.AveragedModel(Tiny()).state_dict() | before("module."),
        {"teacher": Tiny(9).model.state_dict(), "student": state()},
    ],
    ids=lambda content: next(iter(content)),
)
def test_one_set_of_weights_is_found_wherever_it_is(content: object, tmp_path: Path) -> None:
    assert loaded(content, tmp_path / "w.pth") == (1, "w.pth")


@pytest.mark.parametrize("first", ["state_dict", "model", "params"])
def test_the_plain_weights_are_taken_and_their_average_is_named(
    first: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.pth"
    content = {f"{first}_ema": before("module.", 2), first: state(), "optimizer": ADAM}
    assert loaded(content, path) == (1, f"w.pth#{first}")
    assert f"w.pth#{first}_ema" in caplog.messages[0]
    caplog.clear()
    assert loaded(content, path, f"{first}_ema") == (2, f"w.pth#{first}_ema.module")
    assert not caplog.messages


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"student": before("module.backbone."), "teacher": before("backbone.", 2)}, ["student", "teacher"]),
        ({"model": state(), "net": state(2)}, ["model", "net"]),
        (
            {"state_dict": {**before("encoder_q."), **before("encoder_k.", 2), "queue": torch.zeros(3)}},
            ["state_dict.encoder_q", "state_dict.encoder_k"],
        ),
    ],
    ids=["dino", "two", "moco"],
)
def test_where_nothing_decides_the_keys_are_listed(content: dict[str, object], keys: list[str], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match="2 sets of weights") as caught:
        loaded(content, path)
    assert all(f"{path}#{key}" in str(caught.value) for key in keys)
    assert [loaded(content, path, key)[0] for key in keys] == [1, 2]
    with pytest.raises(WeightsError, match=f"no weights at 'none'; the keys of its weights are: {keys[0][:10]}"):
        load_weights(Tiny, path, "none")


def test_tensors_of_other_modules_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {"state_dict": {**before("net."), "criterion.weight": torch.ones(3)}}
    assert loaded(content, tmp_path / "w.pth") == (1, "w.pth")
    assert "left out 1 tensors (criterion.weight)" in caplog.messages[0]


def test_further_tensors_of_the_model_itself_are_refused(tmp_path: Path) -> None:
    """A deeper network has all the names of a shallower one."""
    content = {"state_dict": {**before("net."), "net.model.2.weight": torch.ones(3)}}
    with pytest.raises(WeightsError, match=r"w\.pth#state_dict\.net are not .* 1 unexpected \(model\.2\.weight\)"):
        loaded(content, tmp_path / "w.pth")


def test_of_sets_with_the_same_names_the_one_with_the_model_s_shapes_is_taken(tmp_path: Path) -> None:
    wide = {**state(2), "model.0.weight": torch.zeros(8, 3, 3, 3), "fc.weight": torch.zeros(3, 8)}
    assert loaded({"student": state(), "teacher": wide}, tmp_path / "w.pth") == (1, "w.pth")


def test_a_file_called_like_a_key_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state(), "ema": state(2)}, "a#b.pth")
    path = tmp_path.resolve() / "a#b.pth"
    assert find_file("a#b.pth") == (path, "")
    assert find_file("a#b.pth#ema") == (path, "ema")
    assert find_file("b.pth#ema") is None


def test_a_folder_is_refused(tmp_path: Path) -> None:
    for weights in (str(tmp_path), f"{tmp_path}#model"):
        with pytest.raises(MissingPathError, match="a folder, not a file"):
            load_model(NET, weights)


def test_a_store_records_the_weights_that_were_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save("images/a.png")
    model = torchvision.models.get_model(NET, weights=None, num_classes=4)
    torch.save(
        {"model": model.state_dict(), "ema": {"module." + k: v / 2 for k, v in model.state_dict().items()}}, "w.pth"
    )
    for asked, taken in (("w.pth", "model"), ("w.pth#ema", "ema.module")):
        config = ExtractConfig(model=NET, weights=asked, layers=("features",))
        made = plan_extraction(open_source(tmp_path / "images"), config).store.provenance
        assert made["weights"] == made["weights_source"] == f"{tmp_path.resolve() / 'w.pth'}#{taken}"
        assert load_model(NET, made["weights"]).provenance["weights_digest"] == made["weights_digest"]


def test_objects_that_hold_data_only_are_read_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = types.ModuleType("pytorch_lightning.utilities.parsing")
    settings.AttributeDict = type("AttributeDict", (dict,), {"__module__": settings.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.utilities", settings.__name__):
        monkeypatch.setitem(sys.modules, name, settings)
    allowed = set(torch.serialization.get_safe_globals())
    content = {
        "state_dict": state(),
        "args": argparse.Namespace(lr=0.1, out=Path("out")),
        "best": np.float64(91.2),
        "curve": np.arange(3.0),
        "history": collections.defaultdict(list, loss=[np.float32(1)]),
        "when": datetime.datetime(2024, 1, 2),
        "torch": torch.__version__,
        "hyper_parameters": settings.AttributeDict(lr=0.1),
    }
    assert loaded(content, tmp_path / "w.pth") == (1, "w.pth")
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_weights(Tiny, tmp_path / "old.pth")[1] == str(tmp_path.resolve() / "old.pth")
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_half_precision_and_safetensors_by_content(tmp_path: Path) -> None:
    content = {name: tensor.to(torch.bfloat16) for name, tensor in before("module.").items()}
    assert loaded(content, tmp_path / "w.pth")[0] == 1  # the counter of BatchNorm is floating-point, too
    save_file(content, tmp_path / "w.pt")
    assert all(tensor.flatten()[0] == 1 for tensor in load_weights(Tiny, tmp_path / "w.pt")[0].state_dict().values())


def test_the_versions_of_a_state_are_stored(tmp_path: Path) -> None:
    """A module may read old states by their version, and refuses those without one."""
    seen = []

    class Versioned(Tiny):
        _version = 2

        def _load_from_state_dict(self, state, prefix, metadata, *rest) -> None:
            seen.append(metadata.get("version"))

    old = Versioned()
    old._version = 1
    torch.save(nn.ModuleDict({"module": old}).state_dict(), tmp_path / "old.pth")
    torch.save(state(), tmp_path / "bare.pth")
    for name in ("old.pth", "bare.pth"):
        load_weights(Versioned, tmp_path / name)
    assert seen == [1, 2]
    model = torchvision.models.mnasnet0_5(weights=None)
    torch.save(dict(model.state_dict()), tmp_path / "mnasnet.pth")
    read = load_model("mnasnet0_5", str(tmp_path / "mnasnet.pth")).module.state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in model.state_dict().items())


def test_a_model_is_rebuilt_for_what_its_weights_say(tmp_path: Path) -> None:
    torch.save(Tiny(9).state_dict(), tmp_path / "w.pth")
    built = []

    def build(**keywords: object) -> nn.Module:
        built.append(keywords)
        return Tiny(**keywords)

    load_weights(build, tmp_path / "w.pth", keywords=lambda found: {"size": len(found["fc.bias"])})
    assert built == [{}, {"size": 9}, {"size": 9, "num_classes": 9}]


def test_another_number_of_classes_rebuilds_the_classifier(tmp_path: Path) -> None:
    for name in ("resnet18", NET):
        model = torchvision.models.get_model(name, weights=None, num_classes=365)
        torch.save({"state_dict": model.state_dict()}, tmp_path / "places.pth")
        loaded = load_model(name, str(tmp_path / "places.pth"))
        with torch.no_grad():
            assert loaded.module(torch.zeros(1, 3, 64, 64)).shape == (1, 365)
        assert loaded.class_names is None


def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    state = torchvision.models.get_model(NET, weights=None).state_dict()
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(
        WeightsError, match=r"122 tensors 102 missing \(conv1.weight, .* and 99 more\); 52 unexpected \("
    ):
        load_model("resnet18", str(tmp_path / "net.pth"))
    torch.save({**state, "features.0.weight": torch.zeros(64, 3, 5, 5)}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"of another shape \(features\.0\.weight \(64, 3, 5, 5\) for \(64, 3, 3, 3\)"
    ):
        load_model(NET, str(tmp_path / "w.pth"))


FC = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("name", "tensor", "wanted"),
    [
        ("fc.weight", FC.to(torch.int8), r"1 tensors \(fc.weight\) are not floating-point numbers. Dequantise"),
        ("fc.weight", FC.to(torch.complex64), r"1 tensors \(fc.weight\) are not floating-point"),
        ("model.1.running_var", torch.ones(4, dtype=torch.int32), r"1 tensors \(model.1.running_var\)"),
        ("fc.weight", FC.to_sparse(), "cannot be loaded into this model.*parse"),
        ("fc.weight", FC.to("meta"), "cannot be loaded into this model.*meta"),
        ("fc.weight", FC.numpy(), r"1 missing \(fc.weight\)"),
    ],
)
def test_tensors_of_another_kind_are_refused(name: str, tensor: object, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=wanted):
        loaded({"state_dict": {**state(), name: tensor}}, tmp_path / "w.pth")
