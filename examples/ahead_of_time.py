"""Kernels for GPUs that are not here, and what they take there."""

from pdssm_compiler import ScanSpec, compile


def main() -> None:
    """Compile one scan for two vendors."""
    spec = ScanSpec(state_size=32, dictionary_size=8, map_class="permutation")
    for target in ("sm_90", "gfx942"):
        scan = compile(spec, target)
        took = scan.kernel().resources()
        print(f"{scan.target}: {took['registers']} registers, {took['spilled']} spilled bytes")
        print(scan.explain())
    print(scan.specialised)


if __name__ == "__main__":
    main()
