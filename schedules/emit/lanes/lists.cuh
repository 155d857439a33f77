// Scatter-add by a map that is known only now, by a team: lists that are made together.

// Every source puts itself before the others of its target's list, in whatever order they come
// along: to find those alike in a warp takes longer, several hundred cycles. A target sorts its list, if it
// has no more than eight sources, and adds them up in the order of their numbers. The sources of a longer
// list are looked for by a warp, each lane every 32nd, and their sums added by halves. Which way a target
// takes, and so every bit, follows from the map alone.

__device__ __forceinline__ void lane_in_order(int& low, int& high) {
  const int less = min(low, high);
  high = max(low, high);
  low = less;
}

// The next four sources of a list, in order; `at` becomes the one after them. The upper half of a link is
// the source's target, the lower one the next source, `n` for none.
__device__ __forceinline__ void lane_four_sources(int* source, int& at, const unsigned* link, int n) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    source[k] = at;
    if (at < n) at = link[at] & 65535u;
  }
  lane_in_order(source[0], source[1]);
  lane_in_order(source[2], source[3]);
  lane_in_order(source[0], source[2]);
  lane_in_order(source[1], source[3]);
  lane_in_order(source[1], source[2]);
}

// Adds up the list that begins at `at`, unless it has more than eight sources: then `many` is true.
template <typename V>
__device__ __forceinline__ V lane_sum_list(int at, const unsigned* link, const V* held, int n,
                                           bool& many) {
  int source[8];
  lane_four_sources(source, at, link, n);
  const bool more = __any_sync(0xffffffffu, at < n);
  if (more) {
    lane_four_sources(source + 4, at, link, n);
#pragma unroll
    for (int k = 0; k < 4; ++k) lane_in_order(source[k], source[k + 4]);
    lane_in_order(source[2], source[4]);
    lane_in_order(source[3], source[5]);
#pragma unroll
    for (int k = 1; k < 6; k += 2) lane_in_order(source[k], source[k + 1]);
  }
  many = at < n;
  V sum{};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (source[k] < n) sum = sum + held[source[k]];
  }
  if (more) {
#pragma unroll
    for (int k = 4; k < 8; ++k) {
      if (source[k] < n) sum = sum + held[source[k]];
    }
  }
  return sum;
}

// The sum of all of a target's sources, by a warp; the same bits in every lane.
template <typename V>
__device__ __forceinline__ V lane_sum_sources(unsigned target, const unsigned* link, const V* held,
                                              int within, int n) {
  V sum{};
  for (int j = within; j < n; j += 32) {
    if (link[j] >> 16 == target) sum = sum + held[j];
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum = sum + sum.shuffled(within ^ step);
  return sum;
}

// In place: `value` holds this lane's elements, `target` where they go. `scratch` has room for `n` values,
// for two numbers each and for one more.
template <int ELEMENTS, typename V>
__device__ __forceinline__ void lane_collect_values(V (&value)[ELEMENTS], const int* target,
                                                    void* scratch, int lane, int n, int barrier,
                                                    int threads) {
  const int within = lane % 32;
  V* held = static_cast<V*>(scratch);
  int* first = reinterpret_cast<int*>(held + n);
  unsigned* link = reinterpret_cast<unsigned*>(first + n);
  int* count = first + 2 * n;
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) {
    if (e * threads + lane < n) first[e * threads + lane] = n;
  }
  if (lane == 0) *count = 0;
  lane_team_sync(barrier, threads);
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) {
    const int j = e * threads + lane;
    if (j < n) {
      link[j] = static_cast<unsigned>(target[e]) << 16 | atomicExch(first + target[e], j);
      held[j] = value[e];
    }
  }
  lane_team_sync(barrier, threads);
  bool many[ELEMENTS], any = false;
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) {
    // Lanes beyond the last element repeat it.
    const int i = min(e * threads + lane, n - 1);
    value[e] = lane_sum_list(first[i], link, held, n, many[e]);
    any |= many[e];
  }
  if (!lane_team_any(any, barrier, threads)) return;
  // Nobody follows links any more: they become the targets of long lists.
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) {
    const int i = e * threads + lane;
    if (many[e] && i < n) {
      const int at = atomicAdd(count, 1);
      link[at] = (link[at] & ~65535u) | i;
    }
  }
  lane_team_sync(barrier, threads);
  for (int at = lane / 32; at < *count; at += threads / 32) {
    const unsigned i = link[at] & 65535u;
    const V sum = lane_sum_sources(i, link, held, within, n);
    // No other target reads this one's sources.
    if (within == 0) held[first[i]] = sum;
  }
  lane_team_sync(barrier, threads);
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) {
    if (many[e]) value[e] = held[first[min(e * threads + lane, n - 1)]];
  }
  lane_team_sync(barrier, threads);
}

// One element a lane: called, so that a tile's tokens do not need registers for all of this.
template <typename V>
__device__ __noinline__ V lane_collect_called(V value, int target, void* scratch, int lane, int n,
                                              int barrier, int threads) {
  V values[1] = {value};
  lane_collect_values(values, &target, scratch, lane, n, barrier, threads);
  return values[0];
}

template <int ELEMENTS, typename V>
__device__ __forceinline__ void lane_collect_by_team(V (&value)[ELEMENTS], const int* target,
                                                     void* scratch, int lane, int n, int barrier,
                                                     int threads) {
  if constexpr (ELEMENTS == 1) {
    value[0] = lane_collect_called(value[0], *target, scratch, lane, n, barrier, threads);
  } else {
    lane_collect_values(value, target, scratch, lane, n, barrier, threads);
  }
}

#define PDSSM_COLLECT_LISTED(T)                                                                   \
  template <int ELEMENTS>                                                                         \
  __device__ __forceinline__ void lane_collect_listed(T* re, T* im, const int* target,            \
                                                      void* scratch, int lane, int n,             \
                                                      int barrier, int threads) {                 \
    LaneComplex<T> value[ELEMENTS];                                                               \
    for (int e = 0; e < ELEMENTS; ++e) value[e] = {re[e], im[e]};                                 \
    lane_collect_by_team(value, target, scratch, lane, n, barrier, threads);                      \
    for (int e = 0; e < ELEMENTS; ++e) re[e] = value[e].re, im[e] = value[e].im;                  \
  }                                                                                               \
  template <int ELEMENTS>                                                                         \
  __device__ __forceinline__ void lane_collect_listed(T* re, const int* target, void* scratch,    \
                                                      int lane, int n, int barrier,               \
                                                      int threads) {                              \
    LaneReal<T> value[ELEMENTS];                                                                  \
    for (int e = 0; e < ELEMENTS; ++e) value[e] = {re[e]};                                        \
    lane_collect_by_team(value, target, scratch, lane, n, barrier, threads);                      \
    for (int e = 0; e < ELEMENTS; ++e) re[e] = value[e].re;                                       \
  }

PDSSM_COLLECT_LISTED(float)
PDSSM_COLLECT_LISTED(double)
