"""How a model is asked during the search, and that a success counts only when the model itself agrees in float32."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_vit as rbv
from robustbench_vit.engine.oracle import Oracle
from robustbench_vit.engine.search import Search, asked
from robustbench_vit.errors import InputError, ModelError, UnknownNameError

CPU = torch.device("cpu")
IMAGES = torch.rand(20, 1, 6, 5, generator=torch.Generator().manual_seed(1))


def gradient(ask: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(ask(leaf).logsumexp(1).sum(), leaf)[0]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compilation by a backend that only notes the sizes of the batches it compiles for."""
    sizes: list[int] = []

    def backend(graph: Any, inputs: list[Any]) -> Any:
        sizes.extend(len(value) for value in inputs if value.shape[1:] == IMAGES.shape[1:])
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield sizes
    torch.compiler.reset()


def test_words_are_checked() -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown precision 'fp23'; did you mean 'fp32'\?$"):
        Search("fp23")  # type: ignore[arg-type]


def test_how_it_is_shown() -> None:
    assert Search().shown == "in fp32"
    assert Search("bf16", compiled=True, channels_last=True).shown == "in bf16, compiled, channels last"


def test_tf32_needs_a_gpu() -> None:
    with (
        pytest.raises(
            InputError, match=r"^precision tf32 exists on CUDA devices only, not on 'cpu'; use fp32 or bf16$"
        ),
        asked(nn.Flatten(), Search("tf32"), CPU),
    ):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_tf32_rounds_on_a_gpu_and_fp32_does_not() -> None:
    device = torch.device("cuda")
    a, b = (torch.rand(512, 512, generator=torch.Generator().manual_seed(i)).to(device) for i in range(2))
    exact, errors = (a.double() @ b.double()).float(), {}
    for precision in ("fp32", "tf32"):
        with asked(lambda x: x @ b, Search(precision), device) as ask:
            errors[precision] = float((ask(a) - exact).abs().max())
    assert errors["fp32"] < 1e-3 < errors["tf32"]


def test_a_users_tf32_stays_out_of_the_search_and_comes_back() -> None:
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return x.flatten(1)

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with asked(model, Search(), CPU) as ask:
            ask(IMAGES)
        assert seen == [(False, False)]
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, True)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_bf16_rounds_the_model_and_nothing_else(model: nn.Module) -> None:
    with asked(model, Search("bf16"), CPU) as ask:
        logits, grad = ask(IMAGES), gradient(ask, IMAGES)
    assert logits.dtype == grad.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float())
    difference = (logits - model(IMAGES)).abs().max()
    assert 1e-4 < difference < 0.1
    assert torch.nn.functional.cosine_similarity(grad.flatten(), gradient(model, IMAGES).flatten(), dim=0) > 0.99


def test_channels_last_asks_a_copy(model: nn.Module) -> None:
    formats = []

    def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
        formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    net = nn.Sequential(nn.Conv2d(3, 4, 3), model_of_three_channels())
    net[0].register_forward_pre_hook(note)
    strides = [p.stride() for p in net.parameters()]
    x = torch.rand(4, 3, 6, 5)
    with asked(net, Search(channels_last=True), CPU) as ask:
        logits, grad = ask(x), gradient(ask, x)
    assert formats == [True, True]
    assert grad.is_contiguous()
    assert [p.stride() for p in net.parameters()] == strides
    assert torch.allclose(logits, net(x), atol=1e-6)
    assert torch.allclose(grad, gradient(net, x), atol=1e-6)


def model_of_three_channels() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 3, 5))


def ignore(*_: Any) -> None:
    pass


def test_channels_last_needs_a_module_that_can_be_copied() -> None:
    stuck = nn.Flatten()
    stuck.register_forward_pre_hook(functools.partial(ignore, threading.Lock()))
    with (
        pytest.raises(ModelError, match=r"cannot be copied \(TypeError: cannot pickle .*leave --channels-last"),
        asked(stuck, Search(channels_last=True), CPU),
    ):
        pass
    with (
        pytest.raises(ModelError, match=r"of an nn\.Module, and this model is a function; leave --channels-last"),
        asked(lambda x: x, Search(channels_last=True), CPU),
    ):
        pass


def test_a_compiled_model_answers_as_before_and_sees_few_shapes(model: nn.Module, graphs: list[int]) -> None:
    search = Search(compiled=True)
    with asked(model, search, CPU) as ask, torch.no_grad():
        for rows in (1, 3, 5, 20, 7, 20):
            assert torch.allclose(ask(IMAGES[:rows]), model(IMAGES[:rows]), atol=1e-6)
    assert graphs == [1, 4, 8, 32]
    assert (search.few_shapes, Search().few_shapes) == (True, False)


def test_more_shapes_are_compiled_than_torch_keeps_by_default(model: nn.Module, graphs: list[int]) -> None:
    sizes = [2**k for k in range(5)]
    with asked(model, Search(compiled=True), CPU) as ask:
        for size in sizes * 2:
            x = IMAGES[:1].expand(size, 1, 6, 5).contiguous()
            gradient(ask, x)
            with torch.no_grad():
                ask(x)
    assert sorted(graphs) == sorted(sizes * 2)


@pytest.mark.parametrize("kind", ["callable", "wrapped"])
def test_other_models_can_be_compiled_too(model: nn.Module, graphs: list[int], kind: str) -> None:
    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Output(logits=model(x))

    other = Wrapped() if kind == "wrapped" else lambda x: model(x)
    with asked(other, Search("bf16", compiled=True), CPU) as ask:
        assert (ask(IMAGES[:3]) - model(IMAGES[:3])).abs().max() < 0.1
    assert graphs == [4]


class Output:
    """As Hugging Face models return it."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_model_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch, model: nn.Module, when: str) -> None:
    def broken(graph: Any, inputs: list[Any]) -> Any:
        if when == "forward":
            raise NotImplementedError("no such operation\nand so on")
        from torch._dynamo.exc import BackendCompilerFailed

        class Late(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> Tensor:
                raise BackendCompilerFailed(broken, NotImplementedError("no such operation"), None)

        return lambda *values: [Late.apply(value) for value in graph.forward(*values)]

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    said = r"^the model cannot be compiled here \(.*no such operation\); leave --compile \(compiled=True\) out$"
    with pytest.raises(ModelError, match=said), asked(model, Search(compiled=True), CPU) as ask:
        gradient(ask, IMAGES)
    torch.compiler.reset()


def test_a_compiler_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"^--compile .* needs a C\+\+ compiler, and there is no 'no-such-compiler';"):
        Search(compiled=True).require(CPU)


def test_the_oracle_asks_through_it(model: nn.Module) -> None:
    with asked(model, Search("bf16"), CPU) as ask:
        logits = Oracle(ask, CPU, 8).logits(IMAGES)
        assert torch.equal(logits, torch.cat([ask(IMAGES[:8]), ask(IMAGES[8:16]), ask(IMAGES[16:])]))


class Optimist(nn.Module):
    """Class 0 while the pixels' sum exceeds 2, but in bfloat16 only while it exceeds 2.3; no image is of class 2."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0] * 4, [0.0] * 4, [0.0] * 4]))
            self.head.bias.copy_(torch.tensor([-2.0, 0.0, -9.0]))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(x.flatten(1))
        return logits + torch.tensor([0.0, 0.3, 0.0]).to(logits) if logits.dtype == torch.bfloat16 else logits


EPS = 0.05  # moves the sum by 0.2
SUMS = [2.05, 2.12, 2.25, 2.28, 3.0]  # bfloat16 thinks all but the last one wrong from the start
FALL = [True, True, False, False, False]


@pytest.mark.parametrize("attack", ["apgd-ce", "pgd-20", "square"])
def test_a_success_that_only_low_precision_sees_does_not_count_and_the_search_goes_on(attack: str) -> None:
    smoke = attack == "square"  # forty queries are enough
    x = (torch.tensor(SUMS) / 4).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    y = torch.zeros(len(SUMS), dtype=torch.int64)
    plain, low = (
        rbv.evaluate(Optimist().eval(), x, y, attack, eps=EPS, smoke=smoke, precision=precision, reliability=False)
        for precision in ("fp32", "bf16")
    )
    assert [outcome.verdict == attack for outcome in low.outcomes] == FALL
    assert low.verdicts == plain.verdicts
    with torch.no_grad():
        assert (Optimist()(low.adversarials).argmax(1) != 0).tolist() == FALL
    more = [one.forwards - other.forwards for one, other in zip(low.outcomes, plain.outcomes, strict=True)]
    assert min(more[2:4]) >= 1  # candidates that were rechecked in vain
    assert more[4] == 0


def test_precision_is_protocol_the_rest_is_provenance(model: nn.Module) -> None:
    y = model(IMAGES).argmax(1)
    evaluate = functools.partial(rbv.evaluate, model, IMAGES, y, "fgsm", eps=0.02, reliability=False)
    plain, low, last = evaluate(), evaluate(precision="bf16"), evaluate(channels_last=True)
    assert (plain.protocol["precision"], low.protocol["precision"]) == ("fp32", "bf16")
    assert plain.protocol_id == last.protocol_id != low.protocol_id
    assert [r.provenance["channels_last"] for r in (plain, low, last)] == [False, False, True]
    assert last.provenance["compiled"] is False


def test_a_model_is_compiled_once_for_all_lanes(
    model: nn.Module, graphs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **named: compiled.append(a[0]) or compiler(*a, **named))
    y = model(IMAGES).argmax(1)
    evaluate = functools.partial(rbv.evaluate, model, IMAGES, y, "autoattack", eps=0.02, smoke=True)
    record = evaluate(compiled=True)
    assert compiled == [model]
    assert max(graphs.count(size) for size in graphs) <= 2  # with a gradient, without
    assert record.provenance["compiled"] is True
    assert record.verdicts == evaluate().verdicts


def test_what_cannot_be_asked_so_is_refused_before_the_model_is_asked() -> None:
    asked_for = []

    def model(x: Tensor) -> Tensor:
        asked_for.append(len(x))
        return x.flatten(1)

    with pytest.raises(InputError, match="tf32 exists on CUDA devices only"):
        rbv.evaluate(model, IMAGES, torch.zeros(20, dtype=torch.int64), "fgsm", eps=0.1, precision="tf32")
    assert asked_for == []
