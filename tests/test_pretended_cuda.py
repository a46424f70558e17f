"""The pretended device refuses what a GPU refuses, and gives what the processor gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from pretended_cuda import pretended_cuda
from torch import nn


@pytest.fixture
def there() -> Iterator[torch.Tensor]:
    with pretended_cuda():
        yield torch.arange(12.0).reshape(3, 4).to("cuda")


def test_tensors_say_where_they_are(there: torch.Tensor) -> None:
    assert str(there.device) == "cuda:0"
    assert there.is_cuda
    for made in (
        torch.zeros(3, device="cuda"),
        torch.tensor([1, 2], device="cuda"),
        torch.arange(3.0).cuda(),
        torch.arange(3.0, dtype=torch.float64).to(there),
        there.new_ones(2),
        there[1:] @ there.T,
        nn.Linear(4, 2).to("cuda").weight,
    ):
        assert str(made.device) == "cuda:0"
    assert torch.arange(3).to(there).dtype == torch.float32
    assert str(there.cpu().device) == str(there.to("cpu", torch.float64).device) == "cpu"
    assert there.to("cpu", torch.float64).dtype == torch.float64


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda x: x @ torch.ones(4, 2), "same device"),
        (lambda x: torch.ones(3, 4) * x.mean(), "same device"),
        (lambda x: x[0, torch.tensor([0, 1])].index_add_(0, torch.tensor([0]), torch.ones(1).cuda()), "same device"),
        (lambda x: torch.stack([x[0], torch.ones(4)]), "same device"),
        (lambda x: torch.rand(3, device="cuda", generator=torch.Generator()), "generator"),
        (lambda x: x.numpy(), "Tensor.cpu"),
        (lambda x: nn.Linear(4, 2)(x), "same device"),
    ],
)
def test_what_a_gpu_refuses(there: torch.Tensor, wrong: Callable[[torch.Tensor], object], match: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match=match):
        wrong(there)


def test_what_a_gpu_takes(there: torch.Tensor) -> None:
    assert (there * torch.tensor(2.0)).sum().item() == 132  # a single number of the host
    assert there[torch.tensor([2, 0])].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    there[:, 1] = 0
    there.view(-1)[0] = 7
    assert there[0].tolist() == [7, 0, 2, 3]
    host = torch.empty(4)
    host.copy_(there[0])
    assert host.tolist() == [7, 0, 2, 3]


def test_gradients_stay_there(there: torch.Tensor) -> None:
    here = torch.ones(4, requires_grad=True)
    weight = torch.ones(4, device="cuda", requires_grad=True)
    ((there * weight * here.to("cuda")).sum().cpu() * 2).backward()
    assert weight.grad is not None
    assert here.grad is not None
    assert str(weight.grad.device) == "cuda:0"
    assert str(here.grad.device) == "cpu"
    assert weight.grad.tolist() == here.grad.tolist() == [24, 30, 36, 42]


def test_a_copy_that_no_one_waited_for_is_nonsense(there: torch.Tensor) -> None:
    event = torch.cuda.Event()
    copy = there.to("cpu", non_blocking=True)
    event.record()
    assert copy.isnan().all()
    event.synchronize()
    assert torch.equal(copy, there.cpu())


def test_threads_have_it_too_and_no_one_afterwards() -> None:
    found: list[str] = []
    with pretended_cuda():
        thread = threading.Thread(target=lambda: found.append(str(torch.ones(1, device="cuda").device)))
        thread.start()
        thread.join()
        assert torch.cuda.is_available()
    assert found == ["cuda:0"]
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.ones(1, device="cuda")
