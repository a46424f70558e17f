"""A CUDA device that is not there: what runs on it runs on the processor, and is as strict about devices as a GPU is.

``with pretended_cuda():`` makes ``cuda`` a device of this process. Its tensors say that they are on ``cuda:0``, and refuse what tensors
there refuse: to meet a tensor on the host in one operation, to be read by NumPy, to take a generator of the host. What is copied from it with
``non_blocking=True`` is there once somebody has waited, and nonsense before. So a test that passes here has its tensors where they
belong; what it says nothing of are CUDA's kernels, their rounding, speed, memory, and copies to the device that are overtaken.

Tensors of this device are wrappers around tensors on the host (``torch.Tensor._make_wrapper_subclass``); a pair of modes takes what
creates some. Modes are a thread's own: threads that start within the block have them, too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA, HOST = torch.device("cuda:0"), torch.device("cpu")
MEMORY = 2**34  # bytes
# may take host tensors on CUDA
_CROSSING = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}
_CREATING = (torch.tensor, torch.as_tensor, torch.asarray)
_unfinished: list[tuple[torch.Tensor, torch.Tensor]] = []  # (host tensor, what it will hold)


class Far(torch.Tensor):
    """A tensor that is said to be on the device, around one that is on the host."""

    near: torch.Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        far = torch.Tensor._make_wrapper_subclass(
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device="cpu",
        )
        far.near = near
        return far

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.near})"

    def get_device(self) -> int:
        return 0

    @classmethod
    def __torch_function__(cls, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("numpy", "__array__"):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if name == "tolist":
            return args[0].cpu().tolist()
        if name == "cpu" or (name == "to" and _goes(HOST, *args[1:], **kwargs)):
            near = _Fetch.apply(args[0], bool(kwargs.get("non_blocking")))
            return near if name == "cpu" else func(near, *args[1:], **kwargs)
        if name == "to" and len(args) > 1 and isinstance(args[1], torch.Tensor):  # as another tensor
            return args[0].to(args[1].device, args[1].dtype)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


class _Fetch(torch.autograd.Function):
    """From the device to the host: C++ takes a wrapper for a tensor of the host and would copy nothing."""

    @staticmethod
    def forward(ctx: Any, far: Far, later: bool) -> torch.Tensor:
        if not later:
            finish()
            return far.near.clone()
        host = torch.empty_like(far.near)
        host.view(torch.uint8).fill_(0xFF) if host.dtype != torch.bool else host.fill_(True)  # NaN, -1
        _unfinished.append((host, far.near.clone()))
        return host

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Far, None]:  # type: ignore[override]
        return Far(gradient), None


class _Send(torch.autograd.Function):
    """From the host to the device; its gradient comes back."""

    @staticmethod
    def forward(ctx: Any, near: torch.Tensor) -> Far:
        return Far(near.clone())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient.cpu()


def finish() -> None:
    """What was being copied to the host is there."""
    while _unfinished:
        host, value = _unfinished.pop(0)
        host.copy_(value)


def _goes(where: torch.device, *args: object, **kwargs: object) -> bool:
    """Whether ``Tensor.to`` with these arguments names this kind of device."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            value = value.device
        if isinstance(value, str | torch.device):
            return torch.device(value).type == where.type
    return False


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation on the host's tensors that its arguments are around; RuntimeError where the device would refuse it."""
    flat, _ = tree_flatten((args, kwargs))
    far = any(isinstance(value, Far) for value in flat)
    created = any(isinstance(value, torch.device) and value == CUDA for value in flat)
    if not far and not created:
        return func(*args, **kwargs)
    name = func.overloadpacket.__name__
    if far and name not in _CROSSING:
        met = [value for value in flat if isinstance(value, torch.Tensor) and not isinstance(value, Far)]
        if any(value.dim() for value in met):  # single numbers may come from the host
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu in {func}.")
    if any(isinstance(value, torch.Generator) for value in flat):
        raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' in {func}.")
    if kwargs.get("pin_memory"):
        raise RuntimeError("Only dense CPU tensors can be pinned.")
    if name == "_local_scalar_dense":
        finish()
    near_args, near_kwargs = tree_map_only(
        (Far, torch.device), lambda value: value.near if isinstance(value, Far) else HOST, (args, kwargs)
    )
    out = func(*near_args, **near_kwargs)
    if name == "_local_scalar_dense" or (name == "copy_" and not isinstance(args[0], Far)):
        return out if name == "_local_scalar_dense" else args[0]
    out = tree_map_only(torch.Tensor, Far, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if far else out


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """``cuda`` has a number before C++ asks CUDA for it, nothing is pinned, and data come by way of the host."""

    def __torch_function__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> Any:  # type: ignore[override]
        named = {name: _numbered(value) for name, value in (kwargs or {}).items() if name != "pin_memory"}
        name = getattr(func, "__name__", "")
        if name == "pin_memory":
            return args[0]
        if func is torch.device:
            return func(*args, **named)
        if name == "cuda":
            return args[0].to(CUDA)
        if name == "to" and not isinstance(args[0], Far) and args[0].requires_grad and _goes(CUDA, *args[1:], **named):
            return func(_Send.apply(args[0]), *map(_numbered, args[1:]), **named)
        if func in _CREATING and named.get("device") == CUDA:
            return func(*args, **{**named, "device": "cpu"}).to(CUDA)
        return func(*map(_numbered, args), **named)


def _numbered(value: object) -> object:
    return CUDA if isinstance(value, str | torch.device) and str(value) in ("cuda", "cuda:0") else value


class _Event:
    def __init__(self, **_: object) -> None:
        self.at = 0.0

    def record(self, stream: object = None) -> None:
        pass

    def query(self) -> bool:
        finish()
        return True

    def synchronize(self) -> None:
        finish()


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """``cuda`` is a device of this process and of the threads that it starts in the block; processes know nothing of it."""
    run = threading.Thread.run

    def with_modes(self: threading.Thread) -> None:
        with _Functions(), _Operations():
            run(self)

    functions: dict[str, Callable] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "a pretended device",
        "synchronize": lambda device=None: finish(),
        "empty_cache": lambda: None,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "utilization": lambda device=None: 0,
        "_lazy_init": lambda: None,
        "get_rng_state": lambda device=None: torch.empty(0, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "Event": _Event,
    }
    overwriting = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        stack.enter_context(mock.patch.object(threading.Thread, "run", with_modes))
        # views of wrappers cannot be made in inference mode
        stack.enter_context(
            mock.patch.object(torch, "inference_mode", lambda mode=True: torch.set_grad_enabled(not mode))
        )
        # a parameter that goes to the device is another one: C++ would put the wrapper's memory into it
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwriting)
        stack.enter_context(_Functions())
        stack.enter_context(_Operations())
        yield
        finish()
