import hashlib
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from extract import models as zoo
from extract.layer_choice import list_layers
from extract.models import Preprocess, load_model, torchvision, transforms, weights_digest
from extract.network import Network, capture, probe_images
from stores.errors import ImageError, MissingPathError, UnknownNameError, UsageError, WeightsError

NET = "squeezenet1_1"  # small: 1.2 million parameters


@pytest.fixture(scope="module")
def random_net() -> zoo.LoadedModel:
    return load_model(NET, "none")


@pytest.fixture(scope="module")
def checkpoint(random_net: zoo.LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(random_net.module.state_dict(), path)
    return path


def test_random_weights_are_seeded_and_leave_the_global_state(random_net: zoo.LoadedModel) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    same, other = load_model(NET, "none", seed=0), load_model(NET, "NONE", seed=1)
    assert torch.equal(before, torch.get_rng_state())
    digest = random_net.provenance["weights_digest"]
    assert same.provenance["weights_digest"] == digest
    assert other.provenance["weights_digest"] != digest
    assert other.provenance["weights_source"] == "random, seed 1"


def test_what_is_loaded_is_ready_for_evaluation(random_net: zoo.LoadedModel) -> None:
    assert not any(module.training for module in random_net.module.modules())
    assert not any(p.requires_grad for p in random_net.module.parameters())
    assert json.loads(json.dumps(random_net.provenance)) == random_net.provenance
    transform = pickle.loads(pickle.dumps(random_net.transform))  # noqa: S301 - as a spawned worker does
    for mode in ("L", "P", "RGBA", "CMYK"):
        out = transform(Image.new("RGB", (300, 280)).convert(mode))
        assert (out.shape, out.dtype) == ((3, 224, 224), torch.float32)
    assert "\n" not in repr(transform)
    assert "Weights" in random_net.provenance["transform_source"]


def test_digest_is_the_same_whatever_the_file(random_net: zoo.LoadedModel, checkpoint: Path, tmp_path: Path) -> None:
    state = random_net.module.state_dict()
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "places.pth.tar")
    save_file(dict(state), tmp_path / "net.safetensors")
    for path in (checkpoint, tmp_path / "places.pth.tar", tmp_path / "net.safetensors"):
        loaded = load_model(NET, str(path))
        assert loaded.provenance["weights_digest"] == random_net.provenance["weights_digest"]
        assert loaded.provenance["weights_source"] == str(path)
        assert all(torch.equal(state[key], value) for key, value in loaded.module.state_dict().items())


def test_digest_distinguishes_values_names_shapes_and_types() -> None:
    def digest(**tensors: torch.Tensor) -> str:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_digest(module)

    one = torch.ones(2, 3)
    variants = ({"a": one}, {"b": one}, {"a": one.T}, {"a": one.half()}, {"a": one * 2}, {"a": one, "b": one})
    assert len({digest(**tensors) for tensors in variants}) == len(variants)
    assert digest(a=one, b=one * 2) == digest(b=one * 2, a=one)
    assert digest(a=one, num_batches_tracked=torch.tensor(7)) == digest(a=one)


def test_unknown_models_and_weights_list_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match="'resnet81'; the nearest are resnet18"):
        load_model("resnet81")
    with pytest.raises(UnknownNameError, match="known are IMAGENET1K_V1, DEFAULT, none"):
        load_model(NET, "IMAGENET1K_V7")
    with pytest.raises(MissingPathError, match=r"no weights file .*gone\.pth"):
        load_model(NET, "gone.pth")


def test_a_failed_download_says_what_where_and_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_arguments, **_keywords) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    pattern = (
        r"SqueezeNet1_1_Weights\.IMAGENET1K_V1 from https://.*no route.*checkpoints/squeezenet1_1-.*--weights none"
    )
    for name in ("DEFAULT", "IMAGENET1K_V1", "SqueezeNet1_1_Weights.IMAGENET1K_V1"):
        with pytest.raises(WeightsError, match=pattern) as caught:
            load_model(NET, name)
        assert "\n" not in str(caught.value)


class _Marks:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (self.path, "run")


def test_a_pickle_in_torchs_cache_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    torch.save({"classifier.1.weight": _Marks(tmp_path / "run")}, tmp_path / "checkpoints" / Path(url).name)
    with pytest.raises(WeightsError):
        load_model(NET)
    assert not (tmp_path / "run").exists()


def test_published_weights_bring_transform_and_classes(
    random_net: zoo.LoadedModel, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torchvision.models._api, "load_state_dict_from_url", lambda *_a, **_k: random_net.module.state_dict()
    )
    loaded = load_model(NET)
    assert loaded.provenance["weights_source"] == "torchvision SqueezeNet1_1_Weights.IMAGENET1K_V1"
    assert loaded.provenance["weights_digest"] == random_net.provenance["weights_digest"]
    assert loaded.class_names is not None
    assert len(loaded.class_names) == 1000


def test_a_file_is_known_by_the_digest_in_its_address(checkpoint: Path) -> None:
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    other = SimpleNamespace(url="https://x.org/net-00000000.pth")
    right = SimpleNamespace(url=f"https://x.org/net-{digest[:8]}.pth")
    assert zoo._entry_of(checkpoint, [other, right]) is right
    assert zoo._entry_of(checkpoint, [other, SimpleNamespace(url="https://x.org/net.pth")]) is None


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_auxiliary_heads_are_left_out(name: str, tmp_path: Path) -> None:
    full = torchvision.models.get_model(name, weights=None, init_weights=False, aux_logits=True)
    torch.save(full.state_dict(), tmp_path / "full.pth")
    loaded = load_model(name, str(tmp_path / "full.pth"))
    assert loaded.module.transform_input
    assert not [key for key in loaded.module.state_dict() if key.startswith(("AuxLogits", "aux"))]


def test_old_densenet_names_are_understood(tmp_path: Path) -> None:
    model = torchvision.models.densenet121(weights=None)
    old = {}
    for key, value in model.state_dict().items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in key:
                key = key.replace(part, f"{part[:-1]}.{part[-1]}")
        if "num_batches_tracked" not in key:
            old[key] = value
    torch.save(old, tmp_path / "old.pth")
    loaded = load_model("densenet121", str(tmp_path / "old.pth"))
    assert loaded.provenance["weights_digest"] == weights_digest(model)


OWN = """
import torch
from torch import nn
from torchvision import transforms

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))

def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def sized():
    net = small()
    net.input_size = (20, 30)
    return net

def of_one_size():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))

def no_images():
    return nn.Linear(7, 2)

def ready():
    return small(), transforms.Compose([transforms.Resize((10, 12)), transforms.ToTensor()])

def wrong():
    return 3

def broken():
    return 1 / 0

def seeded(size=(20, 30)):
    torch.manual_seed(0)
    net = small()
    net.input_size = size
    return net

def compiled():
    return torch.compile(seeded(), backend="eager")

def in_place():
    net = seeded()
    net.compile(backend="eager")
    return net

def parts():
    net = seeded()
    net[0] = torch.compile(net[0], backend="eager")
    return net

def parallel():
    net = nn.DataParallel(small())
    net.load_state_dict({"module." + key: value for key, value in seeded().state_dict().items()})
    net.input_size = (20, 30)
    return net

def averaged():
    return torch.optim.swa_utils.AveragedModel(seeded())

def half():
    return seeded().half()

def scripted():
    net = seeded()
    net[0] = torch.jit.trace(net[0], torch.zeros(1, 3, 20, 30))
    return net
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    name = f"own_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    return name


def test_a_network_of_ones_own(own: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 40), (255, 0, 0))
    sized = load_model(f"{own}:sized")
    assert sized.transform(image).shape == (3, 20, 30)
    assert sized.transform(image)[0].mean() == pytest.approx((1 - 0.485) / 0.229, rel=1e-5)
    ready = load_model(f"{own}:ready", seed=4)
    assert ready.transform(image).shape == (3, 10, 12)
    assert ready.transform(image).max() == 1
    assert ready.provenance["weights_digest"] != sized.provenance["weights_digest"]
    torch.save(sized.module.state_dict(), tmp_path / "own.pth")
    loaded = load_model(f"{own}:ready", "own.pth")
    assert loaded.provenance["weights_digest"] == sized.provenance["weights_digest"]


def test_a_network_without_a_transform_is_given_the_usual_one(own: str, caplog: pytest.LogCaptureFixture) -> None:
    image = Image.new("RGB", (100, 50), (255, 0, 0))
    assert load_model(f"{own}:small").transform(image).shape == (3, 224, 224)  # it pools: any size would do
    assert "cropped to 224 × 224 and normalised as for ImageNet" in caplog.text
    fitting = load_model(f"{own}:of_one_size")  # 32 × 32
    steps = transforms.Compose([transforms.Resize(37), transforms.CenterCrop(32), transforms.ToTensor()])
    x = fitting.transform(image)
    assert torch.equal(x, transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(steps(image)))
    assert not fitting.module[1].running_mean.any()  # trying it has changed nothing


@pytest.mark.parametrize(
    ("suffix", "error", "pattern"),
    [
        (":no_images", UsageError, r"input_size = \(height, width\)"),
        (":wrong", UsageError, "must return an nn.Module"),
        (":broken", UsageError, "ZeroDivisionError"),
        (":redy", UnknownNameError, "nearest are ready"),
        ("x:ready", UnknownNameError, "Cannot import"),
    ],
)
def test_what_ones_own_callable_does_wrong_is_reported(own: str, suffix: str, error: type, pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        load_model(own + suffix)


@pytest.mark.parametrize("wrapped", ["compiled", "in_place", "parts", "parallel", "averaged"])
def test_a_wrapped_network_is_the_network_itself(own: str, wrapped: str, tmp_path: Path) -> None:
    plain, loaded = load_model(f"{own}:seeded"), load_model(f"{own}:{wrapped}")
    assert loaded.provenance["weights_digest"] == plain.provenance["weights_digest"]
    assert [layer.name for layer in list_layers(loaded)] == ["0", "1", "2", "3"]
    network = Network.from_loaded(loaded, "0")
    images = probe_images(loaded.transform)
    with capture(loaded.module, {"0": network.layout}) as taken:
        assert torch.equal(network.logits(images), plain.module(images))
    assert torch.equal(taken["0"], network.backbone(images))
    torch.save({key: value + 1 for key, value in plain.module.state_dict().items()}, tmp_path / "own.pth")
    assert torch.equal(load_model(f"{own}:{wrapped}", "own.pth").module[3].bias, plain.module[3].bias + 1)


def test_a_network_of_another_precision_is_run_in_float32(own: str, caplog: pytest.LogCaptureFixture) -> None:
    loaded = load_model(f"{own}:half")
    assert "it is run in float32" in caplog.text
    assert Network.from_loaded(loaded, "0").logits(probe_images(loaded.transform)).dtype == torch.float32


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(own: str) -> None:
    with pytest.raises(UsageError, match=r"module '0' is TorchScript.*Give the Python module that it was made from"):
        load_model(f"{own}:scripted")


def test_a_classifier_of_ones_own_is_not_rebuilt(own: str, tmp_path: Path) -> None:
    state = load_model(f"{own}:sized").module.state_dict()
    torch.save({**state, "3.weight": torch.zeros(7, 4), "3.bias": torch.zeros(7)}, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match="2 of another shape"):
        load_model(f"{own}:sized", "own.pth")


def test_timm(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    loaded = load_model("timm:test_resnet", "none")
    assert loaded.provenance["weights_source"] == "random, seed 0"
    pickle.dumps(loaded.transform)
    size = loaded.transform(Image.new("L", (300, 200))).shape
    assert size[0] == 3
    save_file(loaded.module.state_dict(), tmp_path / "w.safetensors")
    again = load_model("timm:test_resnet", str(tmp_path / "w.safetensors"), seed=9)
    assert again.provenance["weights_digest"] == loaded.provenance["weights_digest"]
    with pytest.raises(UnknownNameError, match=r"nearest are .*resnet18"):
        load_model("timm:resnet_18", "none")
    with pytest.raises(UnknownNameError, match="a1_in1k"):
        load_model("timm:resnet18.a1_in2k", "none")
    with pytest.raises(UnknownNameError, match="DEFAULT, none"):
        load_model("timm:test_resnet", "nothing")


def test_networks_of_other_channels_get_what_they_take() -> None:
    def shape(mode: str, image: Image.Image) -> tuple[int, ...]:
        return tuple(Preprocess(transforms.ToTensor(), mode)(image).shape)

    picture = Image.new("RGB", (20, 10), (200, 100, 0))
    assert shape("L", picture) == (1, 10, 20)
    assert shape("RGBA", picture.convert("RGBA")) == shape("RGBA", picture.convert("CMYK")) == (4, 10, 20)
    with pytest.raises(ImageError, match=r"has 3 channels \(mode RGB\), and the network takes 4"):
        shape("RGBA", picture)
