"""Plain PyTorch over matrices: a block of tokens at a time, so that a block's are there at once
and no more.
"""

from collections.abc import Callable

from pdssm_compiler.ir.ops.matrices import CHOSEN_ALONG
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import is_complex
from pdssm_compiler.ir.value import Value, topological
from pdssm_compiler.schedules.signature import Signature
from pdssm_compiler.schedules.source import Writer

# A sum of products of float32, each step rounded once. A product is exact in float64; their sum is
# rounded to odd there, which keeps what rounding to float32 must know of what was lost.
_FUSED = """
def fused(coefficients, matrices):
    # [n, K], [K, N, N] -> [n, N, N]
    total = coefficients[:, 0, None, None] * matrices[0]
    for k in range(1, len(matrices)):
        if matrices.dtype == torch.float64:
            total = total + coefficients[:, k, None, None] * matrices[k]
            continue
        product = coefficients[:, k, None, None].double() * matrices[k].double()
        wide = total.double()
        rounded = product + wide
        back = rounded - product
        lost = (product - (rounded - back)) + (wide - back)
        bits = rounded.view(torch.int64)
        # Away from zero if that is where the exact sum lies, else towards it.
        away = (lost > 0) == (rounded > 0)
        inexact = (bits & 1 == 0) & (lost != 0) & rounded.isfinite() & lost.isfinite()
        bits = bits + torch.where(inexact, torch.where(away, 1, -1), 0)
        total = bits.view(torch.float64).to(torch.float32)
    return total
"""


# Gumbel noise by Philox, as ir/ops/noise.py has it; words of 32 bits in 64.
_NOISE = """
def gumbel(matrix, scale, seed, draw, row):
    n, word = matrix.shape[-1], 0xFFFFFFFF
    first = torch.arange(n, device=matrix.device)[:, None]
    second = torch.arange(n, device=matrix.device)
    if row:
        first, second = second, first
    draw = draw[:, None, None]
    words = [first // 4 * n + second, draw & word, draw >> 32, torch.zeros_like(draw)]
    key, other = seed & word, seed >> 32
    for _ in range(10):
        low_a, high_a = product(0xD2511F53, words[0])
        low_b, high_b = product(0xCD9E8D57, words[2])
        words = [high_b ^ words[1] ^ key, low_b, high_a ^ words[3] ^ other, low_a]
        key, other = (key + 0x9E3779B9) & word, (other + 0xBB67AE85) & word
    words = torch.broadcast_tensors(*words)
    chosen = words[0]
    for number in range(1, 4):
        chosen = torch.where(first % 4 == number, words[number], chosen)
    uniform = ((chosen >> 9).to(matrix.dtype) + 0.5) * 2.0**-23
    return matrix - scale * torch.log(-torch.log(uniform))


def product(a, b):
    # Of two words, low and high, in parts that do not overflow 63 bits.
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    total = low + ((high & 0xFFFF) << 16)
    return total & 0xFFFFFFFF, (total >> 32) + (high >> 16)
"""


class TorchMatrices:
    """The text of one program; see the module's text."""

    def __init__(self, program: Program, writer: Writer) -> None:
        self.program = program
        self.writer = writer
        self.signature = Signature(program)
        self._names = {
            value: f"v{number}"
            for number, value in enumerate(v for v in program.body if not v.is_leaf)
        }
        self._names |= {
            value: f"{value.name}_block" for value in program.body if value.op == "input"
        }
        # What chooses a map must be added up as it is defined; all else may be a product.
        chosen = [v.args[0] for v in program.body if v.op == "argmax"]
        self._exact = {v for v in topological(chosen) if v.op == "mix"}

    def write(self, numbers: int) -> None:
        """The source; a block has as many numbers of a matrix, or one token."""
        write = self.writer.line
        write("import torch")
        noisy = any(value.op == "gumbel" for value in self.program.body)
        for helper in (_FUSED, _NOISE) if noisy else (_FUSED,):
            for text in ("", "", *helper.strip("\n").splitlines()):
                write(text)
        write("")
        write("")
        names = [argument.name for argument in self.signature.arguments]
        with self.writer.block(f"def scan({', '.join([*names, 'error'])}):"):
            self._all_tokens(numbers)

    def _all_tokens(self, numbers: int) -> None:
        write, n = self.writer.line, self.program.state_size
        tokens = [a for a in self.signature.inputs if a.role == "token"]
        write(f"B, L, H = {tokens[0].name}.shape[:3]")
        write(f"count = max(1, {numbers} // {n * n})")
        for total in self.program.sum_outputs:
            write(f"{total.name}.zero_()")
        # An exact sum is one of one dtype, whatever region the call is in.
        write(f"kind = {tokens[0].name}.device.type")
        with (
            self.writer.block("with torch.autocast(kind, enabled=False):"),
            self.writer.block("for b in range(B):"),
            self.writer.block("for h in range(H):"),
        ):
            for argument in self.signature.inputs:
                if argument.role == "head":
                    write(f"{argument.name}_block = {argument.name}[h]")
            with self.writer.block("for first in range(0, L, count):"):
                write("some = slice(first, first + count)")
                for argument in tokens:
                    write(f"{argument.name}_block = {argument.name}[b, some, h]")
                for value in self.program.body:
                    if not value.is_leaf:
                        self._value(value)
                for out in self.program.token_outputs:
                    write(f"{out.name}[b, some, h] = {self._names[out.value]}")

    def _value(self, value: Value) -> None:
        sums = [total.name for total in self.program.sum_outputs if total.value is value]
        if value.op == "weigh" and sums:
            for name in sums:
                self._add_weighed(value, name)
            return
        names = [self._names[arg] for arg in value.args]
        self.writer.line(f"{self._names[value]} = {RULES[value.op](self, value, names)}")

    def _add_weighed(self, value: Value, name: str) -> None:
        matrix, coefficients = (self._names[arg] for arg in value.args)
        target = f"{name}[b, h].flatten(1)"
        self.writer.line(f"{target}.addmm_({coefficients}.mT, {matrix}.flatten(1))")

    def _uses(self, value: Value) -> int:
        """How often a value that is no input is read."""
        read = sum(other.args.count(value) for other in self.program.body)
        results = [out.value for out in self.program.token_outputs]
        results += [total.value for total in self.program.sum_outputs]
        return read + results.count(value) + value.is_leaf

    def mix(self, value: Value, names: list[str]) -> str:
        """Exact where a map is chosen by it."""
        if value in self._exact:
            return f"fused({names[1]}, {names[0]})"
        n = self.program.state_size
        return f"({names[1]} @ {names[0]}.flatten(1)).unflatten(1, ({n}, {n}))"

    def argmax(self, value: Value, names: list[str]) -> str:
        """-1 where there is a NaN, which torch takes for the largest."""
        along = CHOSEN_ALONG[value.attribute("orientation")]
        self.writer.line(f"largest, place = {names[0]}.max({along})")
        return "torch.where(largest.isnan(), -1, place)"

    def gumbel(self, value: Value, names: list[str]) -> str:
        """Drawn for a block of tokens."""
        return f"gumbel({', '.join(names)}, {value.attribute('orientation') == 'row'})"

    def outer(self, value: Value, names: list[str]) -> str:
        """Of complex vectors: their parts are one more axis that is summed over."""
        sides = [
            name if is_complex(arg.type) else f"{name}.unsqueeze(-1)"
            for name, arg in zip(names, value.args, strict=True)
        ]
        return f"{sides[0]} @ {sides[1]}.mT"

    def straight_through(self, value: Value, names: list[str]) -> str:
        """``ρ (G - Σ ρ G) / τ``; where nothing else reads what it is made of, in its place: memory
        that is new takes longer than the arithmetic.
        """
        matrix, _, reached, temperature = names
        along = CHOSEN_ALONG[value.attribute("orientation")]
        own = [self._uses(arg) == 1 for arg in (value.args[0], value.args[2])]
        sharp = f"{matrix}.div_({temperature})" if own[0] else f"{matrix} / {temperature}"
        self.writer.line(f"soft = torch.softmax({sharp}, {along})")
        self.writer.line(f"mean = (soft * {reached}).sum({along}, keepdim=True)")
        centred = f"{reached}.sub_(mean)" if own[1] else f"({reached} - mean)"
        return f"{centred}.mul_(soft).div_({temperature})"

    def inner(self, value: Value, names: list[str]) -> str:
        """A product of matrices, the entries of each in a row."""
        return f"{names[1]}.flatten(1) @ {names[0]}.flatten(1).mT"

    def weigh(self, value: Value, names: list[str]) -> str:
        """Only where it is not summed over the tokens."""
        return f"{names[1]}[..., None, None] * {names[0]}.unsqueeze(1)"


RULES: dict[str, Callable[[TorchMatrices, Value, list[str]], str]] = {
    "mix": TorchMatrices.mix,
    "argmax": TorchMatrices.argmax,
    "gumbel": TorchMatrices.gumbel,
    "outer": TorchMatrices.outer,
    "straight_through": TorchMatrices.straight_through,
    "inner": TorchMatrices.inner,
    "weigh": TorchMatrices.weigh,
}
SUPPORTED_OPS = frozenset(RULES)
