"""Text to programs: the inverse of :mod:`pdssm_compiler.ir.printer`."""

import ast
import re
from typing import Any

from pdssm_compiler.ir.errors import IRError, ParseError
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.program import (
    Carry,
    Check,
    FinalOutput,
    Input,
    Program,
    SumOutput,
    TokenOutput,
    carry_leaf,
)
from pdssm_compiler.ir.types import (
    ELEMENTS,
    MAP_CLASSES,
    Coefficients,
    Index,
    Map,
    Matrices,
    Matrix,
    Scalar,
    Table,
    Type,
    Vector,
    default_storage,
)
from pdssm_compiler.ir.value import Value
from pdssm_compiler.ir.verify import verify

_NAME = r"%(?P<{}>[A-Za-z_]\w*)"
_VALUE = r"%(?P<{}>\w+)"
_STORAGE = r"(?: as (?P<storage>\w+))?"

_HEADER = re.compile(
    r"scan N=(?P<n>\d+) (?P<direction>forward|backward)(?: chunk=(?P<chunk>\d+))?"
)
_INPUT = re.compile(
    rf"input {_NAME.format('name')} : (?P<role>\w+) (?P<type>\w+(?:<[^>]*>)?){_STORAGE}"
    rf"(?: boundary {_NAME.format('boundary')})?(?: inverse of {_NAME.format('inverse')})?"
)
_CARRY = re.compile(
    rf"carry {_NAME.format('name')} : (?P<type>\w+(?:<[^>]*>)?) = (?P<start>%?\w+)"
)
_ASSIGN = re.compile(r"%(?P<name>\d+) = (?P<op>\w+)(?P<operands>[^:]*?) : (?P<type>\S.*)")
_CHECK = re.compile(
    rf"check {_VALUE.format('map')} for {_NAME.format('subject')} (?P<promise>\w+)"
)
_NEXT = re.compile(rf"next {_NAME.format('name')} = {_VALUE.format('value')}")
_EMIT = re.compile(rf"emit {_NAME.format('name')} = {_VALUE.format('value')}{_STORAGE}")
_SUM = re.compile(
    rf"sum {_NAME.format('name')} = {_VALUE.format('value')}(?: by {_VALUE.format('index')})?"
)
_FINAL = re.compile(rf"final {_NAME.format('name')} = {_NAME.format('carry')}{_STORAGE}")
_TYPE = re.compile(r"(?P<head>\w+)(?:<(?P<params>[^>]*)>)?")


_SIZED: dict[str, Any] = {"coefs": Coefficients, "matrices": Matrices}


def parse_type(text: str) -> Type:
    """Read a type as its ``str`` prints it.

    Raises:
        ParseError: not a type.
    """
    match = _TYPE.fullmatch(text.strip())
    head = match["head"] if match else ""
    params = [p.strip() for p in (match["params"] or "").split(",")] if match else []
    if head in ELEMENTS and match and match["params"] is None:
        return Scalar(head)  # type: ignore[arg-type]
    if head == "vec" and len(params) == 1 and params[0] in ELEMENTS:
        return Vector(params[0])  # type: ignore[arg-type]
    if head == "map" and len(params) == 1 and params[0] in MAP_CLASSES:
        return Map(params[0])  # type: ignore[arg-type]
    if head == "index" and len(params) == 1 and params[0].isdecimal():
        return Index(int(params[0]))
    if head == "table" and len(params) == 2 and params[0].isdecimal() and params[1] in MAP_CLASSES:
        return Table(int(params[0]), params[1])  # type: ignore[arg-type]
    if head == "matrix" and len(params) == 1 and params[0] in ELEMENTS:
        return Matrix(params[0])  # type: ignore[arg-type]
    if head in _SIZED and len(params) == 2 and params[0].isdecimal() and params[1] in ELEMENTS:
        return _SIZED[head](int(params[0]), params[1])  # type: ignore[no-any-return]
    raise ParseError(f"{text!r} is not a type")


class _Parser:
    """Reads line by line; each ``_read_*`` takes the match of its pattern."""

    def __init__(self) -> None:
        self.header: dict[str, Any] | None = None
        self.inputs: list[Input] = []
        self.carries: dict[str, tuple[Type, str]] = {}
        self.next: dict[str, Value] = {}
        self.token_outputs: list[TokenOutput] = []
        self.final_outputs: list[FinalOutput] = []
        self.sum_outputs: list[SumOutput] = []
        self.checks: list[Check] = []
        self.values: dict[str, Value] = {}

    def line(self, text: str) -> None:
        for pattern, read in (
            (_HEADER, self._read_header),
            (_INPUT, self._read_input),
            (_CARRY, self._read_carry),
            (_ASSIGN, self._read_assign),
            (_CHECK, self._read_check),
            (_NEXT, self._read_next),
            (_EMIT, self._read_emit),
            (_SUM, self._read_sum),
            (_FINAL, self._read_final),
        ):
            match = pattern.fullmatch(text)
            if match:
                if self.header is None and pattern is not _HEADER:
                    raise ParseError("the first line must be 'scan N=... forward|backward'")
                read(match)
                return
        if text not in ("body {", "}"):
            raise ParseError("not a line of the text form")

    def _bind(self, name: str, value: Value) -> None:
        if name in self.values:
            raise ParseError(f"%{name} is defined twice")
        self.values[name] = value

    def _value(self, name: str) -> Value:
        if name not in self.values:
            raise ParseError(f"%{name} is used before it is defined")
        return self.values[name]

    def _read_header(self, m: re.Match[str]) -> None:
        if self.header is not None:
            raise ParseError("a second 'scan' line")
        chunk = int(m["chunk"]) if m["chunk"] else None
        self.header = {
            "state_size": int(m["n"]),
            "direction": m["direction"],
            "chunk_length": chunk,
        }

    def _read_input(self, m: re.Match[str]) -> None:
        input_ = Input(
            m["name"],
            parse_type(m["type"]),
            m["role"],  # type: ignore[arg-type]
            m["storage"] or "",
            m["boundary"],
            m["inverse"],
        )
        self.inputs.append(input_)
        self._bind(input_.name, input_.value)

    def _read_carry(self, m: re.Match[str]) -> None:
        type_ = parse_type(m["type"])
        self.carries[m["name"]] = (type_, m["start"])
        self._bind(m["name"], carry_leaf(m["name"], type_))

    def _read_assign(self, m: re.Match[str]) -> None:
        args: list[Value] = []
        attributes: dict[str, Any] = {}
        for operand in filter(None, (part.strip() for part in m["operands"].split(","))):
            if operand.startswith("%"):
                args.append(self._value(operand[1:]))
                continue
            key, separator, literal = operand.partition("=")
            if not separator:
                raise ParseError(f"{operand!r} is neither a value nor an attribute")
            attributes[key] = _literal(literal)
        value = apply(m["op"], *args, **attributes)
        if value.type != parse_type(m["type"]):
            raise ParseError(f"{m['op']} gives {value.type} here, not {m['type']}")
        self._bind(m["name"], value)

    def _read_check(self, m: re.Match[str]) -> None:
        self.checks.append(Check(m["subject"], m["promise"], self._value(m["map"])))

    def _read_next(self, m: re.Match[str]) -> None:
        if m["name"] not in self.carries:
            raise ParseError(f"%{m['name']} is not a carry")
        if m["name"] in self.next:
            raise ParseError(f"a second 'next' line for %{m['name']}")
        self.next[m["name"]] = self._value(m["value"])

    def _read_emit(self, m: re.Match[str]) -> None:
        output = TokenOutput(m["name"], self._value(m["value"]), m["storage"] or "")
        self.token_outputs.append(output)

    def _read_sum(self, m: re.Match[str]) -> None:
        index = None if m["index"] is None else self._value(m["index"])
        if index is not None and not isinstance(index.type, Index):
            raise ParseError(f"a sum is by an index, and %{m['index']} is {index.type}")
        self.sum_outputs.append(SumOutput(m["name"], self._value(m["value"]), index))

    def _read_final(self, m: re.Match[str]) -> None:
        if m["carry"] not in self.carries:
            raise ParseError(f"%{m['carry']} is not a carry")
        storage = m["storage"] or default_storage(self.carries[m["carry"]][0])
        self.final_outputs.append(FinalOutput(m["name"], m["carry"], storage))

    def finish(self) -> Program:
        if self.header is None:
            raise ParseError("empty text: no 'scan' line")
        missing = set(self.carries) - set(self.next)
        if missing:
            raise ParseError(f"no 'next' line for %{min(missing)}")
        return Program(
            inputs=tuple(self.inputs),
            carries=tuple(
                Carry(name, type_, start, self.next[name])
                for name, (type_, start) in self.carries.items()
            ),
            token_outputs=tuple(self.token_outputs),
            final_outputs=tuple(self.final_outputs),
            sum_outputs=tuple(self.sum_outputs),
            checks=tuple(self.checks),
            **self.header,
        )


def _literal(text: str) -> Any:
    # inf and nan are legal floats that literal_eval does not read.
    if text in ("inf", "-inf", "nan"):
        return float(text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise ParseError(f"{text!r} is not a literal") from None


def parse_program(text: str) -> Program:
    """Read and verify a program; blank lines and ``#`` comments are skipped.

    Raises:
        ParseError: a line that is not of the form, naming its number.
        VerificationError: a program that breaks a rule.
    """
    parser = _Parser()
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        try:
            parser.line(line)
        except IRError as error:
            raise ParseError(f"line {number}: {error}: {line!r}") from None
    program = parser.finish()
    verify(program)
    return program
