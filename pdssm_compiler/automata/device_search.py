"""Finding a regular expression's matches by PD-SSM scans on a device, and proving it.

An automaton's state is a one-hot vector and a symbol a map of states, so a scan with diagonal 1
and no drive follows the automaton exactly: products and sums of zeros and ones do not round.
"""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pdssm_compiler import reference
from pdssm_compiler.automata.batching import batches
from pdssm_compiler.automata.bimachine import Bimachine
from pdssm_compiler.automata.corpus import Text
from pdssm_compiler.automata.scan import ScanAutomaton, walk
from pdssm_compiler.automata.spans import backward_symbols, decode_spans
from pdssm_compiler.functional import pd_scan

# Complex numbers of one scan's states, at most: 256 MiB in complex64.
_MOST_ELEMENTS = 2**25
# Tokens of one row that the plain torch loop is timed on; it takes some ten microseconds each.
_LOOP_TOKENS = 1024


@dataclass
class SearchReport:
    """What a search did.

    Attributes:
        pattern: the regular expression.
        backward, forward: dictionary size ``K`` and state size ``N`` of the two scans.
        bytes: text searched.
        matches: matches found.
        seconds: time of all scans, both directions, the device synchronised.
        loop_ratio: time of the plain torch loop over that of the scan, on one slice.
        wrong_states: bytes after which a scan's state was not the automaton's; 0 is right.
        wrong_texts: names of texts whose matches differ from Python's ``re``.
    """

    pattern: str
    backward: tuple[int, int]
    forward: tuple[int, int]
    bytes: int = 0
    matches: int = 0
    seconds: float = 0.0
    loop_ratio: float = 0.0
    wrong_states: int = 0
    wrong_texts: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every state and every match was right."""
        return not self.wrong_states and not self.wrong_texts

    @property
    def bytes_per_second(self) -> float:
        """Text over time: every byte passes through both scans."""
        return self.bytes / self.seconds if self.seconds else 0.0


def search(
    bimachine: Bimachine,
    texts: Sequence[Text],
    device: torch.device,
    *,
    rows: int = 64,
    progress: Callable[[int], None] = lambda count: None,
) -> SearchReport:
    """Find every match in every text, and check every state and every match.

    Args:
        bimachine: the regular expression's two automata.
        texts: what to search.
        device: where the scans run.
        rows: texts of one scan, side by side, at most.
        progress: called with the bytes finished, after each batch.
    """
    report = SearchReport(
        bimachine.pattern,
        (bimachine.backward.symbols, bimachine.backward.states),
        (bimachine.forward.symbols, bimachine.forward.states),
    )
    states = max(bimachine.backward.states, bimachine.forward.states)
    wrong: list[str] = []
    warm = False
    for batch in batches(texts, rows, max_tokens=_MOST_ELEMENTS // states, max_padding=0.5):
        symbols = backward_symbols(bimachine, batch.tokens, batch.lengths)
        if not warm:
            warm = True
            report.loop_ratio = _warm_up(bimachine, symbols, device)
        back = _checked_scan(bimachine.backward, symbols, device, report, reverse=True)
        pairs = bimachine.pair_symbol[symbols, back]
        ahead = _checked_scan(bimachine.forward, pairs, device, report, reverse=False)
        for row, (index, length) in enumerate(zip(batch.indices, batch.lengths, strict=True)):
            spans = decode_spans(bimachine, ahead[row, :length], pairs[row, :length])
            report.matches += len(spans)
            if not _agrees_with_re(bimachine.pattern, texts[index].data, spans):
                wrong.append(texts[index].name)
        report.bytes += int(batch.lengths.sum())
        progress(int(batch.lengths.sum()))
    report.wrong_texts = tuple(wrong)
    return report


def _agrees_with_re(pattern: str, data: bytes, spans: npt.NDArray[np.int64]) -> bool:
    found = [match.span() for match in re.finditer(pattern.encode(), data)]
    return np.array_equal(np.array(found, dtype=np.int64).reshape(-1, 2), spans)


def scan_inputs(
    automaton: ScanAutomaton, symbols: npt.NDArray[np.integer], device: torch.device
) -> dict[str, torch.Tensor]:
    """The arguments of ``pd_scan`` that follow an automaton, one head a row.

    Args:
        automaton: dictionary and first state.
        symbols: integers ``[batch, T]``, in reading order.
        device: where to put them.

    Returns:
        ``diagonal`` (ones) and ``drive`` (zeros), expanded complex64 ``[batch, T, 1, N]``;
        ``dictionary`` int32 ``[1, K, N]``; ``selection`` int16 ``[batch, T, 1]``;
        ``initial_state`` ``[batch, 1, N]``, one-hot.
    """
    shape = (*symbols.shape, 1, automaton.states)
    one = torch.ones((), dtype=torch.complex64, device=device)
    start = torch.zeros(shape[0], 1, shape[3], dtype=torch.complex64, device=device)
    start[:, :, automaton.start] = 1
    return {
        "diagonal": one.expand(shape),
        "drive": torch.zeros_like(one).expand(shape),
        "dictionary": torch.tensor(automaton.maps, device=device)[None],
        "selection": torch.from_numpy(symbols.astype(np.int16))[..., None].to(device),
        "initial_state": start,
    }


def _checked_scan(
    automaton: ScanAutomaton,
    symbols: npt.NDArray[np.integer],
    device: torch.device,
    report: SearchReport,
    *,
    reverse: bool,
) -> npt.NDArray[np.int64]:
    """The states of one scan over a batch; its time and its wrong states go into the report."""
    ordered = symbols[:, ::-1] if reverse else symbols
    inputs = scan_inputs(automaton, ordered, device)
    start = time.perf_counter()
    states, _ = pd_scan(**inputs)  # type: ignore[arg-type]
    _synchronize(device)
    report.seconds += time.perf_counter() - start
    truth = torch.from_numpy(walk(automaton, ordered).astype(np.int64)).to(device)
    exact = torch.zeros_like(states).scatter_(-1, truth[..., None, None], 1)
    report.wrong_states += int((states != exact).any(-1).sum())
    found = states[:, :, 0].real.argmax(-1).cpu().numpy()
    return found[:, ::-1] if reverse else found


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _warm_up(
    bimachine: Bimachine, symbols: npt.NDArray[np.integer], device: torch.device
) -> float:
    """Compile both scans, and time one against the plain loop on a slice."""
    pairs = np.full_like(symbols[:, :1], bimachine.forward.pad)
    pd_scan(**scan_inputs(bimachine.forward, pairs, device))  # type: ignore[arg-type]
    inputs = scan_inputs(bimachine.backward, symbols[:, :_LOOP_TOKENS], device)
    pd_scan(**inputs)  # type: ignore[arg-type]
    times = {}
    for name, function in (("scan", pd_scan), ("loop", reference.pd_scan)):
        trials = []
        for _ in range(3):
            _synchronize(device)
            start = time.perf_counter()
            function(**inputs)  # type: ignore[arg-type]
            _synchronize(device)
            trials.append(time.perf_counter() - start)
        times[name] = sorted(trials)[1]
    return times["loop"] / times["scan"]
