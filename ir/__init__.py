"""The intermediate representation: what a scan computes, apart from how a device runs it."""

from pdssm_compiler.ir.builder import ProgramBuilder
from pdssm_compiler.ir.errors import (
    IRError,
    ParseError,
    PassError,
    PdssmError,
    VerificationError,
)
from pdssm_compiler.ir.interpreter import interpret
from pdssm_compiler.ir.parser import parse_program
from pdssm_compiler.ir.printer import print_program
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.verify import verify

__all__ = [
    "IRError",
    "ParseError",
    "PassError",
    "PdssmError",
    "Program",
    "ProgramBuilder",
    "VerificationError",
    "interpret",
    "parse_program",
    "print_program",
    "verify",
]
