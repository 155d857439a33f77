// Sums over runs.

// Sources sorted by where they go make each target's a run of neighbours, and a sum over runs takes as
// long for any map. `order`: the source at this lane's place, plus 65536 for the first of a run.
// `last`: where the run of this lane's target ends, -1 if it has no source.

// The sum of each target's run of values, each at its place. `scratch` of a team has room for `n`
// values, and for a value and a number of each warp.
template <typename V>
__device__ __forceinline__ V lane_add_runs(V value, int order, int last, V* scratch, int lane, int n,
                                           int barrier, int threads) {
  const int warp = lane / 32, within = lane % 32, warps = threads / 32;
  const unsigned heads = __ballot_sync(0xffffffffu, order >= 65536);
  const unsigned before = heads & (0xffffffffu >> (31 - within));
  const int first = before ? 31 - __clz(before) : 0;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const V found = value.shuffled_up(step);
    if (within - step >= first) value = found + value;
  }
  if (threads == 32) {
    const V found = value.shuffled(last);
    return last < 0 ? V{} : found;
  }
  // Runs that started in an earlier warp.
  V* ends = scratch + n;
  int* closed = reinterpret_cast<int*>(ends + warps);
  if (within == 31) {
    ends[warp] = value;
    closed[warp] = heads != 0;
  }
  lane_team_sync(barrier, threads);
  if (!before) {
    for (int w = warp - 1; w >= 0; --w) {
      value = ends[w] + value;
      if (closed[w]) break;
    }
  }
  if (lane < n) scratch[lane] = value;
  lane_team_sync(barrier, threads);
  return last < 0 ? V{} : scratch[last];
}
