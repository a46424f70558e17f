"""What a few drawn images show of a network: what it is fed, which of its outputs are the logits, whether its values repeat."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from extract.image_io import reason
from extract.model_output import ModelOutput, find_output, tensors_of
from stores.errors import EDDPError, UsageError

if TYPE_CHECKING:
    from extract.image_io import GreyRange
    from extract.models import LoadedModel
    from extract.preprocess import Preprocess

_REPEATED, _BATCHED = 1e-5, 1e-3  # largest difference of two passes, of the largest value: rounding stays below both


def prepare_model(
    loaded: LoadedModel,
    *,
    output: str | None = None,
    grey_range: GreyRange | None = None,
    class_names: Sequence[str] | None = None,
    folders: int | None = None,
) -> LoadedModel:
    """Find what a loaded model is fed (RGB, else grey, else four channels) and where its logits are, by running it on drawn images.

    Parameters
    ----------
    output : where the logits are, see ``find_output``; None: found.
    grey_range : see ``Preprocess``.
    class_names : of the K classes, in place of the model's own.
    folders : how many classes the images have; decides between several outputs where no names do.

    Raises
    ------
    UsageError
        The transform is random or gives no tensor, the model takes none of these images or writes into its own weights, its
        logits cannot be determined, or there are not K class names.
    """
    names = list(class_names) if class_names is not None else loaded.class_names
    module, refusal = loaded.module, None
    for mode in ("RGB", "L", "RGBA"):
        transform = replace(loaded.transform, mode=mode, grey_range=grey_range)
        try:
            check_transform(transform)
            images = probe_images(transform)
        except EDDPError as error:
            raise refusal or error from None
        weights = _sums(module)
        try:
            returned = run_with_hooks(module, (), images, lambda *_: None)
        except UsageError as error:  # another number of channels, perhaps
            refusal = refusal or error
            continue
        if changed := [name for name, value in _sums(module).items() if value != weights.get(name)]:
            then = "Set them before, and do not set them in forward"
            raise UsageError(f"The model writes into its own weights in evaluation mode ({changed[0]}). {then}.")
        named = None if names is None else len(names)
        return prepared(loaded, transform, find_output(returned, len(images), output, named, folders), names)
    assert refusal is not None
    raise refusal


def prepared(
    loaded: LoadedModel, transform: Preprocess, output: ModelOutput, names: Sequence[str] | None
) -> LoadedModel:
    """Give the loaded model with what it is fed and returns, also in its provenance."""
    grey = transform.grey_range
    found = {
        "class_names": names,
        "output": output.key,
        "input_mode": transform.mode,
        "grey_range": None if grey is None else list(grey),
    }
    return replace(loaded, transform=transform, output=output, provenance={**loaded.provenance, **found})


def probe_images(transform: Callable[[Any], torch.Tensor], n: int = 2) -> torch.Tensor:
    """Make a few preprocessed images (n, C, h, w), or clips (n, C, T, h, w), always the same: smooth colours under fine noise.

    Raises UsageError where the transform fails, or gives something else than tensors (C, h, w), or (C, T, h, w), of one size.
    """
    inputs, frames = [], getattr(transform, "frames", None)
    for picture in _drawn(getattr(transform, "mode", "RGB"), n, frames):
        try:
            inputs.append(transform(picture))
        except EDDPError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {reason(error)}"
            raise UsageError(f"The model's transform fails on an image: {what}.") from error
    if inputs[0].ndim != (3 if frames is None else 4) or any(x.shape != inputs[0].shape for x in inputs):
        shapes = " and ".join(str(tuple(x.shape)) for x in inputs)
        raise UsageError(f"The transform must give tensors {_wanted(frames)} of one size, got {shapes}.")
    return torch.stack(inputs)


def _wanted(frames: int | None) -> str:
    return "(C, h, w)" if frames is None else "(C, T, h, w)"


def _drawn(mode: str, n: int, frames: int | None = None) -> Iterator[Any]:
    """A few images; or clips of so many frames, which move."""
    generator = np.random.default_rng(0)
    for _ in range(n):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((320, 320))
        fine = generator.integers(-32, 33, (320, 320, 3))
        pixels = np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)
        if frames is None:
            yield Image.fromarray(pixels).convert(mode)
        else:
            yield [Image.fromarray(np.roll(pixels, 7 * k, (0, 1))).convert(mode) for k in range(frames)]


@contextmanager
def hooked(module: nn.Module, layers: Iterable[str], hook: Callable[[str, Any], Any]) -> Iterator[None]:
    """Call ``hook(layer, output)`` whenever a layer has run within the block; what it returns, if not None, replaces the output."""
    with ExitStack() as stack:
        for name in layers:
            run = module.get_submodule(name).register_forward_hook
            stack.enter_context(run(lambda _module, _inputs, output, name=name: hook(name, output)))
        yield


def run_with_hooks(
    module: nn.Module, layers: Iterable[str], images: torch.Tensor, note: Callable[[str, Any], None]
) -> Any:
    """Run a module once without gradients, and note what each of some layers gives: ``note(layer, output)``.

    Raises UsageError where the model fails.
    """
    device = next((t.device for t in module.parameters()), images.device)
    try:
        with torch.no_grad(), hooked(module, layers, note):
            return module(images.to(device))
    except EDDPError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        kind = "clips" if images.ndim == 5 else "images"
        raise UsageError(f"The model fails on {kind} of shape {tuple(images.shape[1:])}: {what}.") from error


def check_transform(transform: Preprocess) -> None:
    """Raise UsageError unless a transform gives one finite tensor (C, h, w), or (C, T, h, w), the same each time."""
    (picture,), clip = _drawn(transform.mode, 1, transform.frames), transform.frames is not None
    with random_state_kept():
        try:
            found, drawn = run_twice(transform.inner, transform.given(picture))
        except Exception as error:
            if clip:
                failed = f"{type(error).__name__}: {reason(error)}"
                raise UsageError(
                    f"The model's transform fails on a clip, a uint8 tensor (T, C, h, w): {failed}."
                ) from error
            raise UsageError(
                f"The model's transform fails on a PIL image: {type(error).__name__}: {reason(error)}. If it takes something else, "
                "wrap it: lambda image: transform(image=np.asarray(image))['image'] for albumentations."
            ) from error
        for size in () if clip else ((400, 300), (300, 400), (40, 40)):  # some draw for images of one shape only
            with suppress(Exception):  # it may take no small image
                drawn = drawn or run_twice(transform.inner, picture.resize(size))[1]
    if drawn:
        then = "Give the one for evaluation, such as Resize, CenterCrop, ToTensor, Normalize"
        raise UsageError(f"The transform gives an image differently each time: it draws random numbers. {then}.")
    what: str | None = None
    if not isinstance(found, torch.Tensor | np.ndarray):
        keys = f" with {', '.join(map(str, list(found)[:4]))}" if isinstance(found, dict) else ""
        what = f"{type(found).__name__}{keys}"
    elif len(found.shape) != (4 if clip else 3):
        what = f"shape {tuple(found.shape)}"
    elif not clip and found.shape[2] <= 4 < found.shape[0]:
        what = f"shape {tuple(found.shape)}, which has the channels last (ToTensor puts them first)"
    elif not torch.as_tensor(found if isinstance(found, torch.Tensor) else found.copy()).float().isfinite().all():
        what = "NaN or infinite values"
    if what:
        source = "a clip, a uint8 tensor (T, C, h, w)," if clip else "a PIL image"
        raise UsageError(
            f"The model's transform must turn {source} into one tensor {_wanted(transform.frames)}, got {what}."
        )


def run_twice(function: Callable[[Any], Any], value: Any) -> tuple[Any, bool]:
    """Give what a function returns, and whether it returns something else when called again, or draws random numbers."""

    def call() -> Any:
        copies = {Image.Image: "copy", torch.Tensor: "clone"}
        how = next((name for kind, name in copies.items() if isinstance(value, kind)), None)
        return function(getattr(value, how)() if how else value)

    outputs: list[Any] = []
    drawn = _draws(lambda: outputs.append(call()))
    outputs += [call()] if len(outputs) == 1 else []
    return outputs[0], drawn or not all(_equal(outputs[0], other) for other in outputs[1:])


def _draws(call: Callable[[], Any]) -> bool:
    """Whether a call draws from the global generators of Python, torch or NumPy.

    Draws of other threads, which a worker's own make at any time, do not count; NumPy's, whose calls cannot be attributed to a thread,
    count where its generator changes three times in a row.
    """
    drawn, generator = _RandomOperations(), random._inst

    def profile(_frame: Any, event: str, function: Any) -> None:
        if event == "c_call" and getattr(function, "__self__", None) is generator:
            drawn.found = True

    for _ in range(3):
        numpy_state: Any = np.random.get_state()
        before = sys.getprofile()
        sys.setprofile(profile)  # of this thread only
        try:
            with drawn:
                call()
        finally:
            sys.setprofile(before)
        numpy_later: Any = np.random.get_state()
        if drawn.found or _equal(list(numpy_state[1:3]), list(numpy_later[1:3])):
            return drawn.found
    return True


class _RandomOperations(TorchDispatchMode):
    """Notes whether an operation within it draws from torch's global generators."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and (kwargs or {}).get("generator") is None:
            self.found = True
        return func(*args, **(kwargs or {}))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Image.Image):
        return bool(a.size == b.size and a.tobytes() == b.tobytes())
    if isinstance(a, torch.Tensor | np.ndarray):
        x, y = torch.as_tensor(a), torch.as_tensor(b)
        return x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num())
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b) if isinstance(a, int | float | str | type(None)) else True


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the global random generators unchanged."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def _sums(module: nn.Module) -> dict[str, str]:
    """Sum every weight and buffer; as text, so that NaN equals NaN."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return {name: str(t.detach().sum(dtype=torch.float64)) for name, t in tensors if t.is_floating_point()}


def check_repeatable(module: nn.Module, images: torch.Tensor) -> None:
    """Raise UsageError unless a module gives an image the same values each time, as a single image and in any batch.

    ``images`` (n >= 2, C, h, w), or clips (n >= 2, C, T, h, w), are different ones. The message names the first module whose output differs.
    """
    batch = torch.cat([images[:2], images[:2].flip(-1), images[:1].flip(-2)]) if images.ndim == 4 else images[:2]
    with random_state_kept():
        first, drawn = _leaf_outputs(module, batch), _draws(lambda: _leaf_outputs(module, batch[:1]))
        turned = {key: x.flip(0) for key, x in _leaf_outputs(module, batch.flip(0)).items()}
        culprit = _first_difference(first, turned, _BATCHED)
        again = _leaf_outputs(module, batch) if culprit or drawn else first
        alone = _leaf_outputs(module, batch[-1:])
    chance = _first_difference(first, again, _REPEATED)
    if chance or drawn:
        raise UsageError(
            f"The model {f'gives the same image different values each time, first in {chance}' if chance else 'draws random numbers'} "
            "in evaluation mode. Take out dropout(training=True), stochastic depth and the like: no result could be repeated."
        )
    if name := culprit or _first_difference({key: x[-1:] for key, x in first.items()}, alone, _BATCHED):
        raise UsageError(
            f"An image's values depend on the other images of its batch, first in {name}: statistics or the order of the batch are "
            "used in evaluation mode. Give BatchNorm running statistics (track_running_stats=True); use no dynamic quantisation."
        )


def _leaf_outputs(module: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Some values (n, <= 1024) of each leaf module's first output, and of what the model returns, in the order they run."""
    leaves = {name: child for name, child in module.named_modules() if name and not list(child.children())}
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, output: Any) -> None:
        key = f"'{name}' ({type(leaves[name]).__name__})" if name in leaves else name
        if isinstance(output, torch.Tensor) and output.is_floating_point() and output.shape[:1] == images.shape[:1]:
            values = output.detach().flatten(1)
            found.setdefault(key, values[:, :: max(1, values.shape[1] // 1024)].float().clone())

    returned = run_with_hooks(module, leaves, images, keep)
    for key, tensor in tensors_of(returned):
        keep(f"what the model returns{key and f' ({key})'}", tensor)
    return found


def _first_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], tolerance: float) -> str | None:
    for key, x in a.items():
        if key in b and x.shape == b[key].shape:
            difference = (x - b[key]).nan_to_num(posinf=0, neginf=0).abs().max()
            if difference > tolerance * x.nan_to_num(posinf=0, neginf=0).abs().max():
                return key
    return None
