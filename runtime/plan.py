"""Plans: everything a call of one program on one device needs, made once.

The first call of a program on a device makes its plan: the program is lowered, and the small
programs it depends on (inverted dictionaries, verified promises) get plans of their own. Its
kernel is compiled or loaded when it is first called; calls of other sizes may want another
(:mod:`pdssm_compiler.runtime.kernels`). Later calls look plan and kernel up and launch: no file,
no lock, no parsing.
"""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch

from pdssm_compiler.ir.parser import parse_program
from pdssm_compiler.ir.passes.specialise import (
    inverse_program,
    promise_program,
    unverified_promises,
)
from pdssm_compiler.ir.program import LEADING_AXES, Input, Program
from pdssm_compiler.ir.types import Table
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.binding import Slot, allocate, bind, check_layout
from pdssm_compiler.runtime.compile_service import read_config
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.faults import (
    Chosen,
    LastCall,
    Reporter,
    Subject,
    device_words,
    host_word,
)
from pdssm_compiler.runtime.kernels import Kernels
from pdssm_compiler.runtime.output_pool import new_output
from pdssm_compiler.runtime.tuning.on_call import tune_if_asked
from pdssm_compiler.runtime.warm_call import Prepare, warm_call
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.templates.base import Problem

# Bytes: kernels that need not ask for less are compiled for tensors that start at multiples.
ALIGNED = 16


@lru_cache(maxsize=4096)
def program_of(text: str) -> Program:
    """The program of a text form."""
    return parse_program(text)


def caller_inputs(program: Program) -> tuple[Input, ...]:
    """The inputs a caller passes, in order; derived ones are computed."""
    return tuple(input_ for input_ in program.inputs if input_.inverse_of is None)


def inverting_programs(lowered: Program) -> list[tuple[Input, Program]]:
    """The inputs of a specialised program that the runtime computes, and by which programs."""
    derived = (i for i in lowered.inputs if i.inverse_of is not None)
    return [(i, inverse_program(lowered.state_size, i)) for i in derived]


def promise_programs(program: Program, lowered: Program) -> list[tuple[Input, Program]]:
    """The inputs whose promises nothing else verifies, and the programs that do."""
    promised = unverified_promises(program, lowered)
    programs = ((i, promise_program(program.state_size, i)) for i in promised)
    return [(i, helper) for i, helper in programs if helper is not None]


class Plan:
    """One program on one device.

    Args:
        program: the program, not specialised.
        device: a CPU, a GPU, or another device that torch knows.
        alignment: bytes that every pointer is a multiple of, or 0.
        subject: for helper programs, whose maps they check.
        config: an explicit schedule as :func:`config_text` writes it, or "".
        chosen: which of its maps and indices are hard choices.
    """

    def __init__(
        self,
        program: Program,
        device: torch.device,
        alignment: int = 0,
        subject: Subject | None = None,
        config: str = "",
        chosen: Chosen = False,
    ) -> None:
        self.program = program
        self.device = device
        # Asking a device for its type makes a string.
        self._on_gpu = device.type == "cuda"
        explicit = read_config(config)
        # By bucket, the sizes of the first call whose schedule was left to be chosen.
        self.called: dict[Problem, Sizes] = {}
        if explicit is None and subject is None:
            prepare = self._before_first
            self.kernels = Kernels(program, target_of(device), alignment, None, prepare)
        else:
            self.kernels = Kernels(program, target_of(device), alignment, explicit)
        lowered = self.kernels.program
        n = program.state_size
        given = caller_inputs(program)
        self._slots = [Slot.of(Argument(i.name, i.type, i.storage, i.role), n) for i in given]
        positions = {input_.name: number for number, input_ in enumerate(given)}
        signature = Signature(lowered)
        self._outputs = [Slot.of(argument, n) for argument in signature.outputs]
        self._inverses = [
            (positions[i.inverse_of], _helper(i, helper, device))
            for i, helper in inverting_programs(lowered)
            if i.inverse_of is not None
        ]
        # Until the kernel is known, a table stands for its inverse.
        tables = iter(position for position, _ in self._inverses)
        names = [argument.name for argument in signature.inputs]
        self._inverted_places = [n for n, name in enumerate(names) if name not in positions]
        self._order = [positions[name] if name in positions else next(tables) for name in names]
        self._promises = [
            (positions[i.name], _helper(i, helper, device))
            for i, helper in promise_programs(program, lowered)
        ]
        self._given = given
        self._reporter = Reporter(lowered, subject, chosen)
        self._names = [input_.name for input_ in given]
        self._warm: Prepare | None = None
        # Sizes of 1 leave strides open, and what verifies a promise needs the loops.
        if not self._promises and not any(s.strict for s in (*self._slots, *self._outputs)):
            self._warm = warm_call(self._slots, self._outputs, self._order, device)
        if self._on_gpu:
            self._word, self._last = device_words.claim(self._reporter)

    def _before_first(self, sizes: Sizes) -> None:
        """What comes before the first call in a bucket of sizes."""
        if 0 not in sizes:
            bucket = Problem.bucket(sizes.batch * sizes.heads, sizes.length)
            self.called.setdefault(bucket, sizes)
        tune_if_asked(self.program, self.device, sizes)

    @property
    def helpers(self) -> list["Plan"]:
        """The plans of the small programs that calls run first."""
        return [helper for _, helper in (*self._inverses, *self._promises)]

    def run(
        self,
        tensors: Sequence[torch.Tensor],
        *,
        trusted: bool = False,
        out: Sequence[torch.Tensor] | None = None,
        first: int | None = None,
    ) -> list[torch.Tensor]:
        """Run the program.

        Args:
            tensors: the caller's inputs, in order.
            trusted: the promises about maps were verified by an earlier call.
            out: tensors to write instead of new ones.
            first: of a segment, which token of the caller's sequence it starts at, for messages.

        Returns:
            Token outputs, then final outputs, then sums, each sorted by name.
        """
        if self._warm is not None and out is None:
            prepared = self._warm(tensors)
            if prepared is not None:
                arguments, outputs, sizes = prepared
                if self._inverses:
                    self._put_inverses(arguments, self._inverse_tables(tensors, sizes))
                self._launch(arguments, sizes, tensors, first, dense=True)
                return outputs
        return self._run(tensors, trusted, out, first)

    def launcher(self, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
        """The bare launch of the kernel for some inputs, as a benchmark of calls compares them
        with: its arguments are made once, and what it reports is not read.
        """
        bound, sizes = bind(self._slots, tensors)
        outputs = [allocate(slot, sizes, self.device, new_output) for slot in self._outputs]
        arguments = self._arguments(bound, sizes, outputs)
        launch = self.kernels.of(sizes).kernel.launch
        return partial(launch, arguments, self._word if self._on_gpu else host_word.tensor, sizes)

    def _run(
        self,
        tensors: Sequence[torch.Tensor],
        trusted: bool,
        out: Sequence[torch.Tensor] | None,
        first: int | None,
    ) -> list[torch.Tensor]:
        """Any call: tensors of any layout, helper programs, outputs given."""
        bound, sizes = bind(self._slots, tensors)
        outputs = (
            out
            if out is not None
            else [allocate(slot, sizes, self.device, new_output) for slot in self._outputs]
        )
        if sizes.batch == 0 or sizes.heads == 0:
            return list(outputs)
        if not trusted:
            for position, helper in self._promises:
                maps = self._given[position]
                at = first if maps.role == "token" else None
                helper.run([_as_tokens(bound[position], maps)], first=at)
        self._launch(self._arguments(bound, sizes, outputs), sizes, tensors, first)
        return list(outputs)

    def _arguments(
        self, bound: Sequence[torch.Tensor], sizes: Sizes, outputs: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """What the kernel takes: inputs, inverses among them, and outputs."""
        arguments = [bound[position] for position in self._order]
        if self._inverses:
            self._put_inverses(arguments, self._inverse_tables(bound, sizes))
        written = zip(self._outputs, outputs, strict=True)
        return arguments + [slot.kernel_view(tensor) for slot, tensor in written]

    def _put_inverses(
        self, arguments: list[torch.Tensor], inverses: Sequence[torch.Tensor]
    ) -> None:
        for place, inverse in zip(self._inverted_places, inverses, strict=True):
            arguments[place] = inverse

    def _inverse_tables(self, bound: Sequence[torch.Tensor], sizes: Sizes) -> list[torch.Tensor]:
        """What the kernel takes for inverses of tables: these, or the tables where it inverts them
        itself.
        """
        if self.kernels.of(sizes).source.inverts:
            return [bound[position] for position, _ in self._inverses]
        return [
            self._inverted(helper, bound[position], self._given[position])
            for position, helper in self._inverses
        ]

    def _inverted(self, helper: "Plan", table: torch.Tensor, input_: Input) -> torch.Tensor:
        inverse = torch.empty_like(table, memory_format=torch.contiguous_format)
        maps, inverses = (_as_tokens(each, input_) for each in (table, inverse))
        helper._launch([maps, inverses], Sizes(*maps.shape[:3]), [maps], None)
        return inverse

    def _launch(
        self,
        arguments: Sequence[torch.Tensor],
        sizes: Sizes,
        tensors: Sequence[torch.Tensor],
        first: int | None,
        dense: bool = False,
    ) -> None:
        """Launch the kernel for the sizes.

        Args:
            arguments: what it takes.
            sizes: of the call.
            tensors: the caller's, for messages.
            first: see :meth:`run`.
            dense: on a GPU, whether arguments are contiguous, and complex ones as they are.
        """
        kernel = self.kernels.of(sizes).kernel
        if not self._on_gpu:
            kernel.launch(arguments, host_word.tensor, sizes)
            word = int(host_word.array[0])
            if word:
                host_word.array[0] = 0
                named = dict(zip(self._names, tensors, strict=True))
                raise self._reporter.error(word, sizes, named, first or 0)
        else:
            self._last[0] = LastCall(sizes, first is not None)
            launch = kernel.launch_dense if dense else kernel.launch
            if torch.cuda.current_device() == self.device.index:
                launch(arguments, self._word, sizes)
            else:
                with torch.cuda.device(self.device):
                    launch(arguments, self._word, sizes)


def _as_tokens(maps: torch.Tensor, input_: Input) -> torch.Tensor:
    """Maps as sequences of them: a table ``[H, K, N]`` is one, ``[1, K, H, N]``; a map a row or a
    head is a sequence of one token; maps a token are as they are.
    """
    if isinstance(input_.type, Table):
        return maps.transpose(0, 1).unsqueeze(0)
    if input_.role == "row":
        return maps.unsqueeze(1)
    return maps[None, None] if input_.role == "head" else maps


def _helper(input_: Input, program: Program, device: torch.device) -> Plan:
    """The plan of a program over the maps of an input, laid out by :func:`_as_tokens`."""
    tokens = {"B": ("b", 0), "L": ("t", 1), "H": ("h", 2)}
    axes = tuple(tokens[axis] for axis in LEADING_AXES[input_.role])
    if isinstance(input_.type, Table):
        axes = (*axes, ("k", 1))
    subject = Subject(input_.inverse_of or input_.name, axes)
    return Plan(program, device, 0, subject)


_plans: dict[tuple[str, torch.device, int, str, Chosen], Plan] = {}
_plans_lock = threading.Lock()


def plan_for(
    text: str, device: torch.device, alignment: int, config: str = "", chosen: Chosen = False
) -> Plan:
    """The plan of a program on a device; made at the first call."""
    key = (text, device, alignment, config, chosen)
    plan = _plans.get(key)
    if plan is None:
        with _plans_lock:
            plan = _plans.get(key)
            if plan is None:
                plan = Plan(program_of(text), device, alignment, None, config, chosen)
                _plans[key] = plan
    return plan


def run(
    text: str,
    tensors: Sequence[torch.Tensor],
    config: str = "",
    trusted: bool = False,
    out: Sequence[torch.Tensor] | None = None,
    first: int | None = None,
    chosen: Chosen = False,
) -> list[torch.Tensor]:
    """Run a program on the device its tensors are on; see :meth:`Plan.run`.

    Args:
        text: the program's text form.
        tensors: the caller's inputs, in order.
        config: an explicit schedule, or "".
        trusted: the promises about maps were verified by an earlier call.
        out: tensors to write instead of new ones.
        first: which token of the caller's sequence the first one is, for messages.
        chosen: which of its maps and indices are hard choices. On a GPU such calls have a plan of
            their own, whose errors are told as what they are; on a CPU a choice raises them.

    Raises:
        ArgumentError: no tensors, tensors on several devices, or sparse ones.
    """
    device = one_device(text, tensors)
    try:
        alignment = 0
        if tensors[0].is_cuda:
            device_words.raise_any()
            # New outputs are aligned.
            bits = 0
            for tensor in (*tensors, *out) if out else tensors:
                place = tensor.data_ptr()
                bits |= place
                if not place:
                    # Of no size, or without memory: a kernel that read it would end the context.
                    check_layouts(text, tensors)
            alignment = 0 if bits % ALIGNED else ALIGNED
        plan = plan_for(text, device, alignment, config, chosen if tensors[0].is_cuda else False)
        return plan.run(tensors, trusted=trusted, out=out, first=first)
    except (RuntimeError, ValueError):
        # A sparse tensor has no strides or no memory to ask for, and fails somewhere inside. It is
        # looked for only then, so that no other call pays for it.
        check_layouts(text, tensors)
        raise


def one_device(text: str, tensors: Sequence[torch.Tensor]) -> torch.device:
    """The device all tensors are on."""
    if not tensors:
        raise ArgumentError("a scan needs tensors")
    device = tensors[0].device
    for tensor in tensors:
        if tensor.device != device:
            names = [input_.name for input_ in caller_inputs(program_of(text))]
            placed = ", ".join(
                f"{name} on {tensor.device}" for name, tensor in zip(names, tensors, strict=False)
            )
            raise ArgumentError(f"all tensors must be on one device: {placed}")
    return device


def check_layouts(text: str, tensors: Sequence[torch.Tensor]) -> None:
    """Refuse sparse and other tensors without strides or memory, which no operator takes.

    Raises:
        ArgumentError: names the tensor.
    """
    for input_, tensor in zip(caller_inputs(program_of(text)), tensors, strict=False):
        check_layout(input_.name, tensor)


def plans() -> list[Plan]:
    """Every plan made so far."""
    return list(_plans.values())
