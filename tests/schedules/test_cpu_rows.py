"""cpu-rows: where local arrays live, what is prefetched or streamed, where a scatter adds up."""

import numpy as np
import pytest
import torch

from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Index, Map, Table, Vector
from pdssm_compiler.runtime.backends.base import Sizes as CallSizes
from pdssm_compiler.runtime.backends.tvm_cpu import TvmCpu, TvmCpuKernel
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.emit.stages import plan_stages
from pdssm_compiler.schedules.emit.tvm_rows import RowsBody, narrowest, serial_reach
from pdssm_compiler.schedules.signature import CHECK_SHIFT, Signature
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import cpu_target
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows, CpuRowsConfig, token_bytes
from tests.kernels import assert_runs
from tests.strategies import Sizes, arrays_for

CPU = torch.device("cpu")


def agrees(program: Program, config: CpuRowsConfig, shapes: tuple[Sizes, ...]) -> None:
    plan = Plan(program, CPU, 0, None, config_text(config))
    for seed, sizes in enumerate(shapes):
        arrays = arrays_for(program, sizes, seed)
        assert_runs(lambda _, t, __: plan.run(t), program, arrays, sizes, "dense")


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("backward", [False, True])
def test_prefetch_at_the_ends_of_a_sequence(prefetch: int, backward: bool) -> None:
    program = pd_scan(PdScan(9, 3, map_storage="i64"))
    if backward:
        program = adjoint(program).program
    shapes = (Sizes(2, 0, 2), Sizes(1, 1, 3), Sizes(2, 2, 2), Sizes(2, 5, 1))
    agrees(program, CpuRowsConfig(2, prefetch=prefetch), shapes)


def test_prefetch_reaches_every_line_of_a_vector_once() -> None:
    program = pd_scan(PdScan(33, map_source="token", map_storage="u8", final_state=True))
    text = CpuRows().lower(program, cpu_target(), CpuRowsConfig(1)).text
    parallel = text[: text.index("def scan_serial")]
    # Complex64: 8 elements a line, 5 lines; bytes: 1 line. Outputs are asked for to be written.
    asked = {
        "in_diagonal0[b, T.min(t + 1, L - 1), h, line * 8, 0]": 0,
        "in_drive0[b, T.min(t + 1, L - 1), h, line * 8, 0]": 0,
        "in_destination0[b, T.min(t + 1, L - 1), h, line * 64]": 0,
        "out_states0[b, T.min(t + 1, L - 1), h, line * 8, 0]": 1,
    }
    for place, write in asked.items():
        assert parallel.count(f"T.address_of({place}), T.int32({write})") == 1
    assert parallel.count("llvm.prefetch") == len(asked)
    assert parallel.count("for line in T.serial(5)") == 3
    assert parallel.count("for line in T.serial(1)") == 1


def test_a_negative_prefetch_is_refused() -> None:
    refused = CpuRows().feasible(
        pd_scan(PdScan(8, 2)), cpu_target(), CpuRowsConfig(1, prefetch=-1)
    )
    assert refused == "prefetch is a number of tokens up to 1024, not -1"


def lowered(state_size: int) -> KernelSource:
    return CpuRows().lower(pd_scan(PdScan(state_size, 2)), cpu_target(), CpuRowsConfig(1))


@pytest.mark.parametrize(("state_size", "on_stack"), [(32, True), (2048, True), (4096, False)])
def test_small_arrays_are_on_the_stack(state_size: int, on_stack: bool) -> None:
    """State and products, two complex arrays, and a table: up to 64 KiB together."""
    (code,) = (
        data
        for name, data in TvmCpu().compile(lowered(state_size), 0).items()
        if name.endswith(".o")
    )
    assert (b"TVMBackendAllocWorkspace" in code) != on_stack


def test_large_arrays_agree() -> None:
    agrees(pd_scan(PdScan(3000, 2)), CpuRowsConfig(2), (Sizes(1, 3, 3),))


def scattering(left: bool, twice: bool, leaf: str) -> Program:
    """A scatter-add, and a leaf added on one side of it."""
    vector = Vector("c64")
    build = b.ProgramBuilder(6)
    drive = build.input("drive", vector)
    state = build.carry("state", vector)
    map_ = build.input("destination", Map("general"))
    moved = b.scatter_add(b.mul(drive, b.neg(drive)), map_)
    added = drive if leaf == "drive" else state
    following = b.add(added, moved) if left else b.add(moved, added)
    build.emit("states", b.mul(following, following))
    if twice:
        build.emit("moved", moved)
    build.next("state", b.gather(following, map_))
    return build.build()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("leaf", ["drive", "state"])
def test_a_scatter_starts_from_what_is_added(left: bool, twice: bool, leaf: str) -> None:
    program = scattering(left, twice, leaf)
    stages = plan_stages(program, serial_reach(True))
    assert [(filled.op, seed.name) for filled, seed in stages.seeds.items()] == (
        [] if twice else [("scatter_add", leaf)]
    )
    for split_scatter in (True, False):
        agrees(program, CpuRowsConfig(2, split_scatter), (Sizes(2, 3, 3),))


# -- sums in place --------------------------------------------------------------------------------


def in_place(program: Program, split_scatter: bool = True) -> dict[str, str]:
    """Which sums stand in which carries, by op and name."""
    body = RowsBody(program, Writer(), 2, split_scatter)
    return {filled.op: carry.name for filled, carry in body.in_place.items()}


def moved(late: str = "", scattered: str = "product", dtype: str = "f64") -> Program:
    """A carry that becomes a sum by destination, and what else becomes of its old value."""
    vector = Vector(dtype)
    build = b.ProgramBuilder(6)
    drive = build.input("drive", vector)
    map_ = build.input("destination", Map("general"))
    state = build.carry("state", vector)
    total = b.scatter_add(b.mul(drive, state) if scattered == "product" else state, map_)
    following = b.add(total, drive)
    build.emit("states", following)
    if late == "emitted":
        build.emit("before", state)
    elif late == "read":
        build.emit("change", b.sub(following, state))
    elif late == "carried":
        build.emit("before", build.carry("previous", vector))
        build.next("previous", state)
    build.next("state", following)
    return build.build()


IN_PLACE = {"scatter_add": "state"}


@pytest.mark.parametrize("dtype", ["f32", "c128"])
@pytest.mark.parametrize(
    ("late", "scattered", "expected"),
    [
        ("", "product", IN_PLACE),
        ("emitted", "product", IN_PLACE),
        ("read", "product", {}),
        ("carried", "product", {}),
        ("", "carry", {}),
    ],
)
def test_a_sum_is_filled_in_its_carry_once_the_old_value_is_used_up(
    late: str, scattered: str, expected: dict[str, str], dtype: str
) -> None:
    program = moved(late, scattered, dtype)
    assert in_place(program) == expected
    # Where the product is computed in the loop that scatters, the old value is read there.
    assert in_place(program, False) == {}
    agrees(program, CpuRowsConfig(2), (Sizes(2, 3, 3), Sizes(1, 1, 1)))


def test_one_sum_stands_in_one_of_two_carries() -> None:
    vector = Vector("c64")
    build = b.ProgramBuilder(5)
    drive = build.input("drive", vector)
    map_ = build.input("destination", Map("general"))
    first, second = build.carry("first", vector), build.carry("second", vector)
    total = b.scatter_add(b.mul(b.mul(first, second), drive), map_)
    for name in ("first", "second"):
        build.next(name, b.add(total, drive))
    build.emit("product", b.mul(first, second))
    program = build.build()
    assert in_place(program) == {"scatter_add": "first"}
    agrees(program, CpuRowsConfig(2), (Sizes(2, 4, 3),))


# Divisible by 8, by 4, by none; one element.
@pytest.mark.parametrize("state_size", [1, 31, 32, 36])
@pytest.mark.parametrize("element", ["c64", "c128"])
@pytest.mark.parametrize("target", [0, -1])
def test_all_sources_of_a_map_go_to_one_target(state_size: int, element: str, target: int) -> None:
    program = pd_scan(PdScan(state_size, 3, element, map_storage="i64"))
    sizes = Sizes(2, 5, 3)
    arrays = arrays_for(program, sizes, 0)
    arrays["dictionary"][:, 1:] = target % state_size
    # Many go to one, so that states grow.
    arrays["diagonal"] /= state_size
    plan = Plan(program, CPU, 0, None, config_text(CpuRowsConfig(2)))
    assert_runs(lambda _, t, __: plan.run(t), program, arrays, sizes, "dense")


# -- narrow tables --------------------------------------------------------------------------------


def test_the_narrowest_dtype_numbers_every_element() -> None:
    sizes = {1: "uint8", 256: "uint8", 257: "uint16", 65536: "uint16", 65537: "int32"}
    assert {size: narrowest(size) for size in sizes} == sizes


def two_tables(small: int, large: int) -> Program:
    """Gathers by two tables: f32, N = 64."""
    build = b.ProgramBuilder(64)
    drive = build.input("drive", Vector("f32"))
    state = build.carry("state", Vector("f32"))
    for name, size in (("small", small), ("large", large)):
        table = build.input(name, Table(size, "general"), "head")
        index = build.input(f"{name}_index", Index(size))
        state = b.gather(state, b.select(table, index))
    build.next("state", b.add(state, drive))
    build.emit("states", b.add(state, drive))
    return build.build()


def test_tables_are_narrow_while_there_is_room() -> None:
    # 16 KiB: two rows of 64 elements, 128 maps.
    program = two_tables(3, 126)
    assert set(RowsBody(program, Writer(), 2).narrow) == {"large"}
    assert set(RowsBody(program, Writer(), 1).narrow) == {"small", "large"}
    assert not RowsBody(program, Writer(), 1, narrow_tables=False).narrow
    for config in (CpuRowsConfig(1), CpuRowsConfig(2), CpuRowsConfig(2, narrow_tables=False)):
        agrees(program, config, (Sizes(2, 3, 3),))


@pytest.mark.parametrize("state_size", [256, 257])
def test_narrow_tables_hold_the_last_element(state_size: int) -> None:
    program = pd_scan(PdScan(state_size, 2, map_storage="i16"))
    assert set(RowsBody(program, Writer(), 2).narrow.values()) == {narrowest(state_size)}
    agrees(program, CpuRowsConfig(2), (Sizes(1, 4, 3),))


@pytest.mark.parametrize("storage", ["u8", "i32", "i64"])
def test_an_entry_out_of_range_is_clamped_and_reported(storage: str) -> None:
    """Narrow or not; a wide entry must not wrap into range as it is narrowed."""
    program = pd_scan(PdScan(9, 2, map_storage=storage))
    arrays = arrays_for(program, Sizes(1, 4, 3), 0)
    bad = [-1, 9, 256, 2**32 + 3, 255] if storage != "u8" else [255, 9, 10, 128, 200]
    arrays["dictionary"][1, 0, :5] = np.array(bad).astype(
        {"u8": "u1", "i32": "i4", "i64": "i8"}[storage]
    )
    clamped = arrays | {"dictionary": arrays["dictionary"].copy()}
    raw = arrays["dictionary"]
    clamped["dictionary"][(raw < 0) | (raw > 8)] = 8
    want = interpret(program, clamped)["states"]
    for narrow_tables in (True, False):
        config = CpuRowsConfig(2, narrow_tables=narrow_tables)
        source = CpuRows().lower(program, cpu_target(), config)
        kernel = TvmCpu().load(source, 0, TvmCpu().compile(source, 0))
        tensors = []
        for argument in Signature(program).inputs:
            array = torch.tensor(arrays[argument.name])
            if argument.complex:
                tensors.append(torch.view_as_real(array.to(torch.complex64)))
            else:
                tensors.append(array.to(getattr(torch, argument.dtype)))
        states = torch.zeros(1, 4, 3, 9, 2)
        error = torch.zeros(1, dtype=torch.int64)
        kernel.launch([*tensors, states], error, CallSizes(1, 4, 3))
        # The first check, the table's; head 1.
        assert error.item() == (1 << CHECK_SHIFT) + 1
        got = torch.view_as_complex(states).numpy()
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# -- streamed outputs -----------------------------------------------------------------------------


def streamed(program: Program) -> set[str]:
    return {out.name for out in RowsBody(program, Writer(), 2).streamed}


STREAM = CpuRowsConfig(2, stream_bytes=1)


@pytest.mark.parametrize(
    ("spec", "whole_lines"),
    [
        (PdScan(8, 2), True),  # in a carry
        (PdScan(8, 2, orientation="row"), True),  # in an array of its own
        (PdScan(7, 2), False),
        (PdScan(8, 2, "c128", map_storage="i64"), True),
        (PdScan(16, map_source="token"), True),
        (PdScan(32, map_source="none", final_state=True), True),
    ],
)
def test_streamed_outputs_agree(spec: PdScan, whole_lines: bool) -> None:
    program = pd_scan(spec)
    assert streamed(program) == ({"states"} if whole_lines else set())
    shapes = (Sizes(2, 3, 5), Sizes(1, 1, 1), Sizes(2, 0, 2))
    agrees(program, STREAM, shapes)
    backward = adjoint(program).program
    assert len(streamed(backward)) == (2 if whole_lines else 0)
    agrees(backward, STREAM, shapes)


@pytest.mark.parametrize(("storage", "dtype"), [("cb32", torch.bfloat16), ("c32", torch.float16)])
def test_streamed_outputs_of_other_dtypes_than_computed(storage: str, dtype: torch.dtype) -> None:
    program = pd_scan(PdScan(16, 2, payload_storage=storage))
    assert streamed(program) == {"states"}
    tensors = [
        torch.polar(torch.rand(2, 3, 5, 16), torch.randn(2, 3, 5, 16)),
        torch.randint(16, (5, 2, 16), dtype=torch.int32),
        torch.randn(2, 3, 5, 16, 2).to(dtype),
        torch.randint(2, (2, 3, 5), dtype=torch.int32),
    ]
    ours, plain = (
        Plan(program, CPU, 0, None, config_text(config)).run(tensors)[0]
        for config in (STREAM, CpuRowsConfig(2))
    )
    assert plain.dtype == dtype
    assert plain.abs().max() > 0
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("late", ["emitted", "read", "carried"])
def test_streamed_outputs_next_to_the_carry_agree(late: str) -> None:
    """What a token overwrites must be out by then."""
    vector = Vector("f64")
    build = b.ProgramBuilder(8)
    drive, map_ = build.input("drive", vector), build.input("destination", Map("general"))
    state = build.carry("state", vector)
    following = b.add(b.scatter_add(b.mul(drive, state), map_), drive)
    build.emit("states", following)
    build.emit("other", b.sub(following, state) if late == "read" else state)
    build.emit("given", drive)
    if late == "carried":
        build.emit("previous", build.carry("last", vector))
        build.next("last", state)
    build.next("state", following)
    program = build.build()
    assert {"states", "other", "given"} <= streamed(program)
    agrees(program, STREAM, (Sizes(2, 4, 3),))


@pytest.mark.parametrize("offset", [0, 2, 16])
def test_streams_to_any_address(offset: int) -> None:
    """Rows that do not start a line are stored plainly: all of them, every other one, none."""
    program = pd_scan(PdScan(8, 2))
    sizes = Sizes(2, 3, 5)
    arrays = arrays_for(program, sizes, 1)
    plans = [Plan(program, CPU, 0, None, config_text(c)) for c in (STREAM, CpuRowsConfig(2))]
    memory = torch.zeros(2, offset + 2 * 3 * 5 * 8 * 2 + 16)
    memory = memory.view(torch.complex64)
    outs = [row[offset // 2 :][: 2 * 3 * 5 * 8].view(2, 3, 5, 8) for row in memory]
    for plan, out in zip(plans, outs, strict=True):

        def run(_: object, tensors: list[torch.Tensor], __: object, plan=plan, out=out):  # type: ignore[no-untyped-def]
            return plan.run(tensors, out=[out])

        assert_runs(run, program, arrays, sizes, "dense")
    assert torch.equal(outs[0], outs[1])
    # Nothing before or after the output was written.
    assert memory.count_nonzero() == sum(out.count_nonzero() for out in outs)


class Recorder:
    """What a kernel's entries are called with after the tensors and the error word."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def __getitem__(self, entry: str):  # type: ignore[no-untyped-def]
        return lambda *arguments: self.calls.append(arguments[-3:])


@pytest.mark.parametrize(("stream_bytes", "expected"), [(0, 0), (1536, 1), (1537, 0)])
def test_outputs_are_streamed_from_a_size_on(stream_bytes: int, expected: int) -> None:
    signature = Signature(pd_scan(PdScan(8, 2)))
    assert token_bytes(signature) == 64
    recorder = Recorder()
    config = CpuRowsConfig(4, stream_bytes=stream_bytes)
    kernel = TvmCpuKernel(recorder, config, signature)
    kernel.launch([], torch.zeros(1, dtype=torch.int64), CallSizes(2, 4, 3))
    assert recorder.calls == [(1, 3, expected)]


def test_a_negative_size_to_stream_from_is_refused() -> None:
    refused = CpuRows().feasible(
        pd_scan(PdScan(8, 2)), cpu_target(), CpuRowsConfig(1, stream_bytes=-1)
    )
    assert refused == "stream_bytes is a number of bytes, not -1"
