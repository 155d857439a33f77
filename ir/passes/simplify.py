"""simplify: the algebra that derived programs leave behind.

before → after, reason: each rule drops an op without changing any result, so that an adjoint
reads, and costs, as if it had been written by hand. Common subexpressions and dead values need no
rule (see :mod:`pdssm_compiler.ir.value`).
"""

from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.passes.rewrite import Rule, rewrite
from pdssm_compiler.ir.program import Program, zero_like
from pdssm_compiler.ir.types import Map, is_complex
from pdssm_compiler.ir.value import Value


def _constant(value: Value) -> float | None:
    """The number a value always is, None if it is not a real constant."""
    if value.op == "broadcast":
        return _constant(value.args[0])
    if value.op == "constant":
        return value.attribute("value")
    return None


def _is_zero(value: Value) -> bool:
    if value.op == "complex":
        return all(_is_zero(part) for part in value.args)
    return _constant(value) == 0.0


def _add(value: Value) -> Value | None:
    """X + 0 → x; x + (-y) → x - y."""
    if value.op != "add":
        return None
    left, right = value.args
    if _is_zero(right) and left.type == value.type:
        return left
    if _is_zero(left) and right.type == value.type:
        return right
    if right.op == "neg":
        return apply("sub", left, right.args[0])
    return None


def _sub(value: Value) -> Value | None:
    """X - 0 → x."""
    if value.op == "sub" and _is_zero(value.args[1]) and value.args[0].type == value.type:
        return value.args[0]
    return None


def _mul(value: Value) -> Value | None:
    """X · 1 → x; x · complex(r, 0) → x · r."""
    if value.op != "mul":
        return None
    left, right = value.args
    for one, other in ((left, right), (right, left)):
        if _constant(one) == 1.0 and other.type == value.type:
            return other
        # A real factor costs two products instead of four.
        if one.op == "complex" and _is_zero(one.args[1]) and is_complex(other.type):
            return apply("mul", other, one.args[0])
    return None


def _imaginary(value: Value) -> Value | None:
    """complex(0, b) · x → complex(0, b x); complex(0, b) · complex(x, y) → complex(-(b y), b x).

    A factor that is not made of parts stays whole: a carry in parts would have no summary.
    """
    if value.op != "mul":
        return None
    for one, other in (value.args, value.args[::-1]):
        if one.op != "complex" or not _is_zero(one.args[0]):
            continue
        zero, b = one.args
        if not is_complex(other.type):
            return apply("complex", zero, apply("mul", b, other))
        if other.op == "complex":
            x, y = other.args
            return apply("complex", apply("neg", apply("mul", b, y)), apply("mul", b, x))
    return None


def _by_parts(value: Value) -> Value | None:
    """complex(a, b) ± complex(c, d) → complex(a ± c, b ± d), likewise of a real one and a complex;
    broadcast(complex(a, b)) → complex(broadcast(a), broadcast(b)).
    """
    if value.op == "broadcast" and value.args[0].op == "complex":
        return apply("complex", *(apply("broadcast", part) for part in value.args[0].args))
    if value.op not in ("add", "sub") or not any(arg.op == "complex" for arg in value.args):
        return None
    if not all(arg.op == "complex" or not is_complex(arg.type) for arg in value.args):
        return None
    (a, b), (c, d) = (
        arg.args if arg.op == "complex" else (arg, zero_like(arg.type)) for arg in value.args
    )
    return apply("complex", apply(value.op, a, c), apply(value.op, b, d))


def _twice(value: Value) -> Value | None:
    """neg(neg(x)) → x; conj(conj(x)) → x; invert(invert(p)) → p."""
    if value.op in ("neg", "conj", "invert") and value.args[0].op == value.op:
        return value.args[0].args[0]
    return None


def _parts(value: Value) -> Value | None:
    """real(complex(a, b)) → a; imag(complex(a, b)) → b; conj(complex(a, b)) → complex(a, -b);
    complex(real(z), imag(z)) → z; real(conj(z)) → real(z); imag(conj(z)) → -imag(z).
    """
    inner = value.args[0] if value.args else None
    if inner is None:
        return None
    if inner.op == "complex" and value.op in ("real", "imag"):
        return inner.args[0 if value.op == "real" else 1]
    if inner.op == "complex" and value.op == "conj":
        return apply("complex", inner.args[0], apply("neg", inner.args[1]))
    if inner.op == "conj" and value.op == "real":
        return apply("real", inner.args[0])
    if inner.op == "conj" and value.op == "imag":
        return apply("neg", apply("imag", inner.args[0]))
    if value.op == "complex" and inner.op == "real" and value.args[1].op == "imag":
        return inner.args[0] if inner.args[0] is value.args[1].args[0] else None
    return None


def _identity(value: Value) -> Value | None:
    """gather(x, iota) → x; scatter_add(x, iota) → x; compose with iota → the other map;
    invert(iota) → iota.
    """
    if not any(arg.op == "iota" for arg in value.args):
        return None
    if value.op in ("gather", "scatter_add"):
        return value.args[0]
    if value.op == "compose":
        other = value.args[0 if value.args[1].op == "iota" else 1]
        return other if other.type == value.type or value.type == Map("identity") else None
    return value.args[0] if value.op == "invert" else None


def _keep(value: Value) -> Value | None:
    """keep(0, k) → 0; keep(keep(x, k), k) → keep(x, k)."""
    if value.op != "keep":
        return None
    inner = value.args[0]
    return (
        inner
        if _is_zero(inner) or (inner.op == "keep" and inner.args[1] is value.args[1])
        else None
    )


RULES: tuple[Rule, ...] = (
    _add,
    _sub,
    _mul,
    _imaginary,
    _by_parts,
    _twice,
    _parts,
    _identity,
    _keep,
)


def simplify(program: Program) -> Program:
    """Apply every rule until none applies."""
    return rewrite(program, RULES)
