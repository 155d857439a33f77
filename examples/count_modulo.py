"""An automaton as a scan: how many a's so far, modulo 3, exactly, at every letter of a text.

A state is a one-hot vector and a letter a map of states. With a diagonal of ones and no drive, the
scan moves a one about; nothing rounds.
"""

import torch

from pdssm_compiler import pd_scan

MODULUS = 3


def counts(text: str) -> list[int]:
    """The number of a's in each prefix of the text, modulo 3."""
    stay, step = range(MODULUS), [(state + 1) % MODULUS for state in range(MODULUS)]
    dictionary = torch.tensor([[list(stay), step]])  # [H, K, N]: one head, two maps
    selection = torch.tensor([[[int(letter == "a")] for letter in text]])  # [B, T, H]
    ones = torch.ones((), dtype=torch.complex64).expand(1, len(text), 1, MODULUS)
    start = torch.zeros(1, 1, MODULUS, dtype=torch.complex64)
    start[..., 0] = 1
    states, _ = pd_scan(
        ones,
        torch.zeros_like(ones),
        dictionary=dictionary,
        selection=selection,
        map_class="permutation",  # both maps are; the promise makes the scan cheaper
        initial_state=start,
    )
    return states[0, :, 0].real.argmax(-1).tolist()


def main() -> None:
    """Show a text and its counts."""
    text = "a banana and an apple"
    print(text)
    print("".join(map(str, counts(text))))


if __name__ == "__main__":
    main()
