// Scatter-add by a map that is known only now, by a warp.

// The sources of a target form a list in the order of their numbers. Every source adds what the
// next one on its list holds and then looks twice as far, so a target with `s` sources takes
// log2(s) rounds and a permutation none; its first source ends with the sum.

// One element a lane; `first` is scratch for `n` numbers.
template <typename T, int PARTS>
__device__ __forceinline__ void lane_collect_one(T (&value)[PARTS], int target, int* first,
                                                 int lane, int n) {
  const bool here = lane < n;
  // What the token before has read may be written now.
  __syncwarp();
  const unsigned peers = __match_any_sync(0xffffffffu, here ? target : 32 + lane);
  const unsigned later = peers & ~((2u << lane) - 1);
  int next = later ? __ffs(later) - 1 : 32;
  if (here) first[lane] = 32;
  __syncwarp();
  if (here && !(peers & ((1u << lane) - 1))) first[target] = lane;
  __syncwarp();
  // Lanes beyond the last element repeat it.
  const int from = first[min(lane, n - 1)];
  while (__any_sync(0xffffffffu, next < 32)) {
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      const T found = __shfl_sync(0xffffffffu, value[part], next);
      if (next < 32) value[part] += found;
    }
    const int further = __shfl_sync(0xffffffffu, next, next);
    next = next < 32 ? further : 32;
  }
#pragma unroll
  for (int part = 0; part < PARTS; ++part) {
    const T found = __shfl_sync(0xffffffffu, value[part], from);
    value[part] = from < 32 ? found : T(0);
  }
}

// Several elements a lane; scratch for `n` numbers each, `PARTS * n` of them in `held`.
template <typename T, int PARTS, int ELEMENTS>
__device__ __forceinline__ void lane_collect_many(T (&value)[ELEMENTS][PARTS],
                                                  const int* target, T* held, int* first,
                                                  int* link, int lane, int n) {
  int next[ELEMENTS], from[ELEMENTS];
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) {
    if (e * 32 + lane < n) first[e * 32 + lane] = n;
  }
  __syncwarp();
#pragma unroll
  for (int e = ELEMENTS - 1; e >= 0; --e) {
    const int j = e * 32 + lane;
    const bool here = j < n;
    const unsigned peers = __match_any_sync(0xffffffffu, here ? target[e] : n + lane);
    const unsigned later = peers & ~((2u << lane) - 1);
    next[e] = !here ? n : later ? e * 32 + __ffs(later) - 1 : first[target[e]];
    __syncwarp();
    if (here && !(peers & ((1u << lane) - 1))) first[target[e]] = j;
    __syncwarp();
  }
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) from[e] = first[min(e * 32 + lane, n - 1)];
  while (true) {
    bool more = false;
#pragma unroll
    for (int e = 0; e < ELEMENTS; ++e) {
      const int j = e * 32 + lane;
      more |= next[e] < n;
      if (j < n) {
        link[j] = next[e];
#pragma unroll
        for (int part = 0; part < PARTS; ++part) held[j * PARTS + part] = value[e][part];
      }
    }
    __syncwarp();
    if (!__any_sync(0xffffffffu, more)) break;
#pragma unroll
    for (int e = 0; e < ELEMENTS; ++e) {
      if (next[e] < n) {
#pragma unroll
        for (int part = 0; part < PARTS; ++part) value[e][part] += held[next[e] * PARTS + part];
        next[e] = link[next[e]];
      }
    }
    __syncwarp();
  }
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) {
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      value[e][part] = from[e] < n ? held[from[e] * PARTS + part] : T(0);
    }
  }
  __syncwarp();
}

// In place: `re` (and `im`) hold this lane's elements, `target` where they go. `scratch` has
// `lane_scratch` bytes of the warp's own.
template <typename T, int PARTS, int ELEMENTS>
__device__ __forceinline__ void lane_collect_elements(T* re, T* im, const int* target,
                                                      void* scratch, int lane, int n) {
  T value[ELEMENTS][PARTS];
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) {
    value[e][0] = re[e];
    if (PARTS == 2) value[e][PARTS - 1] = im[e];
  }
  if constexpr (ELEMENTS == 1) {
    lane_collect_one(value[0], target[0], static_cast<int*>(scratch), lane, n);
  } else {
    T* held = static_cast<T*>(scratch);
    int* first = reinterpret_cast<int*>(held + PARTS * n);
    lane_collect_many<T, PARTS, ELEMENTS>(value, target, held, first, first + n, lane, n);
  }
#pragma unroll
  for (int e = 0; e < ELEMENTS; ++e) {
    re[e] = value[e][0];
    if (PARTS == 2) im[e] = value[e][PARTS - 1];
  }
}

#define PDSSM_COLLECT(T, E)                                                                       \
  __device__ __forceinline__ void lane_collect_##E(T* re, T* im, const int* target,               \
                                                   void* scratch, int lane, int n) {              \
    lane_collect_elements<T, 2, E>(re, im, target, scratch, lane, n);                             \
  }                                                                                               \
  __device__ __forceinline__ void lane_collect_##E(T* re, const int* target, void* scratch,       \
                                                   int lane, int n) {                             \
    lane_collect_elements<T, 1, E>(re, re, target, scratch, lane, n);                             \
  }

#define PDSSM_COLLECTS(T)                                                                         \
  PDSSM_COLLECT(T, 1)                                                                             \
  PDSSM_COLLECT(T, 2)                                                                             \
  PDSSM_COLLECT(T, 3)                                                                             \
  PDSSM_COLLECT(T, 4)                                                                             \
  PDSSM_COLLECT(T, 5)                                                                             \
  PDSSM_COLLECT(T, 6)                                                                             \
  PDSSM_COLLECT(T, 7)                                                                             \
  PDSSM_COLLECT(T, 8)

PDSSM_COLLECTS(float)
PDSSM_COLLECTS(double)
