// What is made of the maps of a table before rows run: sources by target.

// Calls `put(source, target, place)` for every source of a map, by one warp: `place` is what `counts`
// held for the target and how many sources came before; `counts` is moved on by all of them.
template <typename Entry, typename Put>
__device__ __forceinline__ void lane_each_source(int* counts, const Entry* map, int lane, int n,
                                                 Put put) {
  for (int first = 0; first < n; first += 32) {
    const int j = first + lane;
    const bool here = j < n;
    const unsigned all = __ballot_sync(0xffffffffu, here);
    const int target = here ? map[j] : 0;
    unsigned peers = 0;
    if (here) {
      peers = __match_any_sync(all, target);
      put(j, target, counts[target] + __popc(peers & ((1u << lane) - 1)));
    }
    __syncwarp();
    // One of those with the same target counts them all.
    if (here && lane == __ffs(peers) - 1) counts[target] += __popc(peers);
    __syncwarp();
  }
}

// The sorted form of one map of a table, by one warp: `order` of place `i` and `last` of target `i` (`n`
// for none) from `form[2 * i]` on. `counts` holds how many sources each target has.
template <typename Entry>
__device__ __forceinline__ void lane_sort_table(unsigned* form, int* counts, const Entry* map,
                                                int lane, int n) {
  int sum = 0;
  for (int first = 0; first < n; first += 32) {
    const int i = first + lane, count = i < n ? counts[i] : 0;
    const int through = sum + lane_sum_through(count, lane);
    if (i < n) {
      form[2 * i + 1] = count ? through - 1 : n;
      counts[i] = through - count;
    }
    sum = __shfl_sync(0xffffffffu, through, 31);
  }
  __syncwarp();
  lane_each_source(counts, map, lane, n,
                   [&](int j, int target, int place) { form[2 * place] = j; });
  for (int first = 0; first < n; first += 32) {
    const int i = first + lane;
    if (i < n) {
      const unsigned source = form[2 * i] & 65535u;
      const bool head = i == 0 || map[form[2 * i - 2] & 65535u] != map[source];
      form[2 * i] = source | (head ? 65536u : 0u);
    }
  }
}

// Prepare one map of a table, by one warp: what targets collect, as 16-bit numbers, and the map's kind.
// Of a target `i` four from `fan[2 * i]` on and four from `fan[2 * n + 2 * i]` on: its first eight sources;
// or in pairs, the mate of source `i`, then the first of each of its first seven pairs. `counts` is
// scratch for `n` numbers. Sources are numbered from `base` on, and in pairs at most 32.
template <bool PAIRS, bool SORTS, typename Entry>
__device__ __forceinline__ void lane_prepare(unsigned* fan, int* kind, int* counts,
                                             const Entry* map, int lane, int n, int base = 0) {
  const unsigned none = PAIRS ? 0x8000u : static_cast<unsigned>(n);
  for (int word = lane; word < 4 * n; word += 32) fan[word] = none | (none << 16);
  for (int i = lane; i < n; i += 32) counts[i] = 0;
  __syncwarp();
  unsigned short* sources = reinterpret_cast<unsigned short*>(fan);
  const auto entry = [&](int i, int at) { return (at < 4 ? 0 : 4 * n - 4) + 4 * i + at; };
  // The entry of the source before that a source is the mate of.
  int first = -1;
  lane_each_source(counts, map, lane, n, [&](int j, int target, int place) {
    const int at = PAIRS ? 1 + place / 2 : place;
    if (at >= 8) return;
    if (PAIRS && place % 2) {
      first = entry(target, at);
    } else {
      sources[entry(target, at)] = base + j;
    }
  });
  // `lane_each_source` has met.
  if (PAIRS && first >= 0) sources[entry(sources[first] - base, 0)] = base + lane;
  int most = 0;
  for (int i = lane; i < n; i += 32) most = max(most, counts[i]);
  most = __reduce_max_sync(0xffffffffu, most);
  if (lane == 0) *kind = PAIRS ? 2 * (most > 6) + (most > 14) : (most > 4) + (most > 6) + (most > 8);
  if (SORTS && most > (PAIRS ? 14 : 8)) lane_sort_table(fan, counts, map, lane, n);
  __syncwarp();
}

#define PDSSM_PREPARE(NAME, PAIRS, SORTS)                                                         \
  template <typename Entry>                                                                       \
  __device__ __forceinline__ void lane_prepare_##NAME(unsigned* fan, int* kind, int* counts,      \
                                                      const Entry* map, int lane, int n) {        \
    lane_prepare<PAIRS, SORTS>(fan, kind, counts, map, lane, n);                              \
  }

template <typename Entry>
__device__ __forceinline__ void lane_prepare_sides(unsigned* fan, int* kind, int* counts,
                                                   const Entry* map, int lane, int n, int base) {
  lane_prepare<true, false>(fan, kind, counts, map, lane, n, base);
}

PDSSM_PREPARE(registers, true, true)
PDSSM_PREPARE(team, false, true)
PDSSM_PREPARE(shared, false, false)
