// Scatter-add by a map that is sorted before.

// A map that several values go by, or whose values are waited for, is sorted once.

__device__ __forceinline__ void lane_meet(int barrier, int threads) {
  if (threads == 32) {
    __syncwarp();
  } else {
    lane_team_sync(barrier, threads);
  }
}

// `scratch` has room for `n` numbers of each warp, `2 * n` more, and one a warp.
__device__ __forceinline__ void lane_sort(int* order, int* last, int target, void* scratch,
                                          int lane, int n, int barrier, int threads) {
  const int warp = lane / 32, within = lane % 32, warps = threads / 32;
  const bool here = lane < n;
  int* counts = static_cast<int*>(scratch);
  int* starts = counts + warps * n;
  int* sorted = starts + n;
  int* totals = sorted + n;
  for (int at = lane; at < warps * n; at += threads) counts[at] = 0;
  lane_meet(barrier, threads);
  const unsigned peers = __match_any_sync(0xffffffffu, here ? target : n + within);
  const unsigned earlier = peers & ((1u << within) - 1);
  if (here && !earlier) counts[warp * n + target] = __popc(peers);
  lane_meet(barrier, threads);
  int rank = __popc(earlier), count = 0;
  for (int w = 0; here && w < warps; ++w) {
    count += counts[w * n + lane];
    rank += w < warp ? counts[w * n + target] : 0;
  }
  int through = lane_sum_through(count, within);
  if (within == 31) totals[warp] = through;
  lane_meet(barrier, threads);
  for (int w = 0; w < warp; ++w) through += totals[w];
  if (here) starts[lane] = through - count;
  lane_meet(barrier, threads);
  if (here) sorted[starts[target] + rank] = lane | (rank == 0 ? 65536 : 0);
  lane_meet(barrier, threads);
  *order = here ? sorted[lane] : 65536 | (n - 1);
  if (here) starts[lane] = count ? through - 1 : -1;
  lane_meet(barrier, threads);
  // Lanes beyond the last element repeat it.
  *last = starts[min(lane, n - 1)];
  lane_meet(barrier, threads);
}

// The sum of each target's run. `scratch` has room for `2 * n` values, and for a value and a number
// of each warp.
template <typename V>
__device__ __forceinline__ V lane_sum_runs(V value, int order, int last, void* scratch, int lane,
                                           int n, int barrier, int threads) {
  V* held = static_cast<V*>(scratch);
  if (threads == 32) {
    value = value.shuffled(order);
  } else {
    if (lane < n) held[lane] = value;
    lane_team_sync(barrier, threads);
    value = held[order & 65535];
  }
  return lane_add_runs(value, order, last, held + n, lane, n, barrier, threads);
}

template <typename V>
__device__ __noinline__ V lane_sum_runs_called(V value, int order, int last, void* scratch, int lane,
                                               int n, int barrier, int threads) {
  return lane_sum_runs(value, order, last, scratch, lane, n, barrier, threads);
}

#define PDSSM_SUM_RUNS(T, NAME)                                                                   \
  __device__ __forceinline__ void lane_sum_##NAME(T* re, T* im, int order, int last,              \
                                                  void* scratch, int lane, int n, int barrier,    \
                                                  int threads) {                                  \
    const LaneComplex<T> sum = lane_sum_##NAME(LaneComplex<T>{*re, *im}, order, last, scratch,    \
                                               lane, n, barrier, threads);                        \
    *re = sum.re;                                                                                 \
    *im = sum.im;                                                                                 \
  }                                                                                               \
  __device__ __forceinline__ void lane_sum_##NAME(T* re, int order, int last, void* scratch,      \
                                                  int lane, int n, int barrier, int threads) {    \
    *re = lane_sum_##NAME(LaneReal<T>{*re}, order, last, scratch, lane, n, barrier, threads).re;  \
  }

PDSSM_SUM_RUNS(float, runs)
PDSSM_SUM_RUNS(float, runs_called)
PDSSM_SUM_RUNS(double, runs)
PDSSM_SUM_RUNS(double, runs_called)
