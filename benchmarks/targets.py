"""What is wanted, beside which each run puts what it measured."""

# The fraction of the copy roof, on an H100, by shape, maps and direction.
OF_ROOF = {
    (shape, maps, direction): wanted
    for maps, direction, of_shapes in (
        ("permutation", "forward", (0.92, 0.90, 0.80, 0.88, 0.70)),
        ("random", "forward", (0.85, 0.80, 0.75, 0.75, 0.60)),
        ("random", "backward, active", (0.85, 0.85, 0.75, 0.75, 0.60)),
    )
    for shape, wanted in zip(("LM-32", "LM-64", "LONG", "FSA", "UEA"), of_shapes, strict=True)
}

# Times the speed of the plain torch loop, on a CPU, by shape and direction.
OF_LOOP = {
    ("N32", "forward"): 30,
    ("N128", "forward"): 15,
    ("N32", "backward"): 20,
    ("N128", "backward"): 8,
}

# The worst map's time, of that of random maps.
WORST = 3.0
# How far times may lie apart at a constant number of tokens, of the least.
LENGTHS = 0.15
# What a warm call may add to its kernel (on a GPU, to its launch), the import to torch's, and what
# a new process may take to its first result with kernels that are in the cache.
CALL_US = 20
IMPORT_S = 0.3
FIRST_RESULT_S = 2.0

# What calls take untuned, over the best that was measured.
UNTUNED = 1.15

# Milliseconds of the compiled layer's forward and backward on an H100, by width, B and T: a
# Mamba-2 layer of that width (expand 2, state 128) took 8.61 there, and as much more memory; and
# microseconds that decoding a token of 64 sequences may take over its matrix products.
LAYER = {(1024, 8, 4096): 8.61 / 1.5}
LAYER_PEAK_MIB = 1450
LAYER_STEP_US = 8

# Milliseconds of the fused core in bfloat16, on an H100; at N = 64 a fifth more.
FUSED_MS = {
    ("LM-32", "forward"): 0.22,
    ("LM-32", "forward + backward"): 0.70,
    ("LM-64", "forward"): 0.22 * 1.2,
    ("LM-64", "forward + backward"): 0.70 * 1.2,
}

# Milliseconds of a PD-SSM layer, forward and backward in float32, on an H100; and how many times
# as long as with identity maps it may take.
MIXTURE_MS = {"FSA-40": 2.0, "FSA-256": 10.0, "FSA-32x256": 2.0, "UEA": 11.0}
MIXTURE_RATIO = {"D2048": 2.0, "D5632": 2.0}
