"""Generated PyTorch: what it reads like, and that it is a plain function of tensors."""

from typing import Any

import pytest
import torch

from pdssm_compiler.ir import Program, ProgramBuilder, interpret, parse_program
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Vector
from pdssm_compiler.runtime.backends import BACKENDS, Sizes
from pdssm_compiler.runtime.backends.triton_gpu import module_of
from pdssm_compiler.runtime.binding import Slot, allocate, bind
from pdssm_compiler.runtime.compile_service import lower
from pdssm_compiler.runtime.key import key_of
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import cpu_target
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunksConfig
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokensConfig
from tests.kernels import assert_runs, rounded, tensors_of
from tests.strategies import Sizes as Shape
from tests.strategies import arrays_for

SPEC = PdScan(5, 3, initial_state=True, final_state=True)
CONFIGS = (
    TorchTokensConfig(),
    TorchTokensConfig(split=True),
    TorchChunksConfig(2),
    TorchChunksConfig(2, split=True),
)


def source(program: Program, config: Any) -> KernelSource:
    return lower(program, cpu_target(), config)[0]


def arguments(program: Program, shape: Shape) -> list[torch.Tensor]:
    """A kernel's tensors: inputs as the runtime binds them, then outputs full of NaN."""
    lowered = source(program, CONFIGS[0])
    n = program.state_size
    slots = [Slot.of(argument, n) for argument in lowered.signature.inputs]
    arrays = rounded(program, arrays_for(program, shape, 3))
    bound, sizes = bind(slots, tensors_of(program, arrays, "dense"))
    written = lowered.signature.outputs
    outputs = [Slot.of(argument, n) for argument in written]
    made = [slot.kernel_view(allocate(slot, sizes, torch.device("cpu"))) for slot in outputs]
    return [*bound, *(tensor.fill_(float("nan")) for tensor in made)]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_header_is_the_program(config: Any) -> None:
    found = source(pd_scan(SPEC), config)
    header = [line for line in found.text.splitlines() if line.startswith("#")]
    assert header[0] == f"# {found.template} {config}"
    text = "\n".join(line.removeprefix("# ").removeprefix("#") for line in header[1:])
    assert parse_program(text + "\n") == found.program
    assert BACKENDS["torch"].compile(found, 0) == {"source.py": found.text.encode()}


def test_the_key_has_the_version_of_torch() -> None:
    key = key_of(source(pd_scan(SPEC), CONFIGS[0]), 0)
    assert (key.compilers, key.loaders) == ("", f"torch={torch.__version__}")
    others = [key_of(source(pd_scan(SPEC), config), 0) for config in CONFIGS[1:]]
    assert len({key.digest, *(other.digest for other in others)}) == len(CONFIGS)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_torch_compile_takes_it_whole(config: Any, backward: bool) -> None:
    program = pd_scan(SPEC)
    program = specialise(adjoint(program).program if backward else program)
    scan = module_of(source(program, config)).scan
    # What comes after the graph is captured takes long; one of each template is enough.
    through = config.split and not backward
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager" if through else "eager")
    for length in (5, 1):
        results = []
        for function in (scan, compiled):
            given, error = arguments(program, Shape(2, length, 3)), torch.zeros(1).long()
            function(*given, error)
            assert error.item() == 0
            results.append([tensor for tensor in given if tensor.is_floating_point()])
        for mine, theirs in zip(*results, strict=True):
            assert not mine.isnan().any()
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("split", [False, True])
def test_the_compiled_option(split: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One function a size, so that many sizes use up no recompilations."""
    compile_, limit = torch.compile, torch._dynamo.config.recompile_limit
    made = []

    def counted(function: Any, **options: Any) -> Any:
        made.append(options)
        return compile_(function, **options, backend="eager")

    monkeypatch.setattr(torch, "compile", counted)
    program = specialise(pd_scan(SPEC))
    kernels = [
        BACKENDS["torch"].load(source(program, TorchChunksConfig(1, split, compiled)), 0, {})
        for compiled in (False, True)
    ]
    lengths = range(1, limit + 3)
    for length in (*lengths, 1, 2):
        results = []
        for kernel in kernels:
            given = arguments(program, Shape(1, length, 1))
            kernel.launch(given, torch.zeros(1).long(), Sizes(1, length, 1))
            results.append(given[-2:])
        assert all(map(torch.equal, *results))
    assert made == [{"fullgraph": True, "dynamic": False}] * len(lengths)


@pytest.mark.parametrize("config", [TorchTokensConfig(), TorchChunksConfig(2)], ids=str)
def test_no_name_of_a_program_clashes(config: Any) -> None:
    """Names that Python, the source's own functions or another part of the program have."""
    build = ProgramBuilder(3)
    vector = Vector("c64")
    given = [build.input(name, vector) for name in ("lambda", "torch", "in_torch", "v3", "L")]
    carry = build.carry("torch_", vector, build.input("carries", vector, "row"))
    total = carry
    for value in given:
        total = b.add(b.mul(value, total), value)
    build.next("torch_", total)
    build.emit("torch", total)
    build.emit("v3", b.real(total), "f32")
    build.final("lambda", "torch_")
    program = build.build()
    scan = module_of(source(program, config)).scan

    def run(_: Program, tensors: list[torch.Tensor], shape: Shape) -> list[torch.Tensor]:
        outputs = [
            torch.full((2, 5, 2, 3), float("nan"), dtype=torch.complex64),
            torch.full((2, 5, 2, 3), float("nan")),
            torch.full((2, 2, 3), float("nan"), dtype=torch.complex64),
        ]
        views = [torch.view_as_real(t) if t.is_complex() else t for t in (*tensors, *outputs)]
        scan(*views, torch.zeros(1).long())
        return outputs

    arrays = arrays_for(program, Shape(2, 5, 2), 1)
    assert interpret(program, arrays)["torch"].shape == (2, 5, 2, 3)
    assert_runs(run, program, arrays, Shape(2, 5, 2), "dense")


def test_the_last_failed_check_is_told() -> None:
    program = pd_scan(PdScan(4, 3))
    found = source(program, CONFIGS[0])
    given = arguments(program, Shape(2, 3, 2))
    given[3][0, 1, 1] = given[3][1, 0, 1] = 7
    error = torch.zeros(1).long()
    module_of(found).scan(*given, error)
    number = [check.subject for check in found.signature.checks].index("selection") + 1
    assert error.item() == (number << 48) + 1 * 3 * 2 + 0 * 2 + 1
    # What is there already is not forgotten by a call without fault.
    before = error.clone()
    module_of(found).scan(*arguments(program, Shape(2, 3, 2)), error)
    assert torch.equal(error, before)
