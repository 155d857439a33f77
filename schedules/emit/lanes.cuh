// Device functions of kernels that run a row on the lanes of a warp (schedules/emit/tvm_lanes.py).
// TVM repeats the text before every function that needs it: hence the guard.
#ifndef PDSSM_LANES
#define PDSSM_LANES

// -- copies from global to shared memory, and the barriers that order them ----------------------

__device__ __forceinline__ unsigned lane_shared(const void* place) {
  return static_cast<unsigned>(__cvta_generic_to_shared(place));
}

__device__ __forceinline__ void lane_copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(lane_shared(to)), "l"(from)
               : "memory");
}

__device__ __forceinline__ void lane_copy8(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(lane_shared(to)), "l"(from)
               : "memory");
}

__device__ __forceinline__ void lane_copy4(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(lane_shared(to)), "l"(from)
               : "memory");
}

__device__ __forceinline__ void lane_barrier_init(void* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(lane_shared(barrier)), "r"(arrivals)
               : "memory");
}

__device__ __forceinline__ void lane_arrive(void* barrier) {
  asm volatile("{\n .reg .b64 state;\n mbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(
                   lane_shared(barrier))
               : "memory");
}

// Arrives when the copies this thread has started are there.
__device__ __forceinline__ void lane_arrive_with_copies(void* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(lane_shared(barrier))
               : "memory");
}

__device__ __forceinline__ void lane_wait(void* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
#define PDSSM_TEST "mbarrier.try_wait.parity.shared.b64"
#else
#define PDSSM_TEST "mbarrier.test_wait.parity.shared.b64"
#endif
  unsigned done;
  do {
    asm volatile("{\n .reg .pred p;\n " PDSSM_TEST
                 " p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(lane_shared(barrier)), "r"(parity)
                 : "memory");
  } while (!done);
}

// -- results ------------------------------------------------------------------------------------

// Streaming: a scan reads no output again.
__device__ __forceinline__ void lane_store(float* to, float re, float im) {
  __stcs(reinterpret_cast<float2*>(to), make_float2(re, im));
}

__device__ __forceinline__ void lane_store(double* to, double re, double im) {
  __stcs(reinterpret_cast<double2*>(to), make_double2(re, im));
}

// Its result is not used, so it becomes a reduction, which the thread does not wait for.
template <typename T>
__device__ __forceinline__ void lane_add(T* to, T value) {
  atomicAdd(to, value);
}

// -- numbers of other lanes ---------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ T lane_shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}

// The sum over the warp, the same bits in every lane.
template <typename T>
__device__ __forceinline__ T lane_sum(T value) {
#pragma unroll
  for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The sums over the warp of one value of each lane for each of several tokens, 2 to 32 of them, all
// tokens together: a step hands the other lane one token's numbers and keeps the other's, so two
// take one shuffle. `lane_merge` takes the value of token `u`, the tokens in order; what waits for
// a partner stands in `waiting`, a place for each power of two up to the number of tokens.
template <typename T>
__device__ __forceinline__ void lane_merge(T* waiting, T value, int u) {
  int level = 0;
#pragma unroll
  for (int step = 16; step; step /= 2) {
    if (!(u >> level & 1)) break;
    const bool upper = threadIdx.x & step;
    const T theirs = upper ? waiting[level] : value;
    value = upper ? value : waiting[level];
    value += __shfl_xor_sync(0xffffffffu, theirs, step);
    ++level;
  }
  waiting[level] = value;
}

// The token whose sum a lane has in the end.
__device__ __forceinline__ int lane_merged_token(int lane, int tokens) {
  return __brev(lane) >> 27 & (tokens - 1);
}

// That sum, after all tokens.
template <typename T>
__device__ __forceinline__ T lane_merged(const T* waiting, int tokens) {
  T value = waiting[31 - __clz(tokens)];
#pragma unroll
  for (int step = 16 / tokens; step; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}

__device__ __forceinline__ void lane_max(int* place, int value) { atomicMax(place, value); }

// -- scatter-add without atomics: every target collects its sources -----------------------------
//
// Sources are added in the order of their numbers, four at a time, so a sum never depends on
// timing. `Source` gives number `j` of what is scattered: from registers of other lanes (one
// element a lane) or from shared memory.

template <typename T>
struct LaneRegisters {
  T value;
  // Bit 15 marks a missing source; a shuffle reads the low five bits.
  __device__ __forceinline__ T at(unsigned source) const {
    T found = __shfl_sync(0xffffffffu, value, source);
    return source & 0x8000u ? T(0) : found;
  }
  __device__ __forceinline__ T every(int source) const {
    return __shfl_sync(0xffffffffu, value, source);
  }
};

template <typename T, int STRIDE>
struct LaneShared {
  const T* values;
  // A missing source is the zero kept behind the last element.
  __device__ __forceinline__ T at(unsigned source) const {
    return values[(source & 0x7fffu) * STRIDE];
  }
  __device__ __forceinline__ T every(int source) const { return values[source * STRIDE]; }
};

template <typename Source>
__device__ __forceinline__ auto lane_four(Source source, unsigned low, unsigned high) {
  return (source.at(low & 0xffffu) + source.at(low >> 16)) +
         (source.at(high & 0xffffu) + source.at(high >> 16));
}

// Any map, however many sources a target has: look at all of them. `PARTS` numbers move together.
template <typename T, int PARTS, typename Source, typename Map>
__device__ __forceinline__ void lane_collect_parts(T (&sums)[PARTS], const Source (&from)[PARTS],
                                                   Map map, int target, int n) {
#pragma unroll
  for (int part = 0; part < PARTS; ++part) sums[part] = T(0);
  // Not unrolled: it is seldom run, and would push what is run out of the instruction cache.
#pragma unroll 1
  for (int j = 0; j < n; ++j) {
    bool hit = map.every(j) == target;
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      T value = from[part].every(j);
      sums[part] += hit ? value : T(0);
    }
  }
}

// What a target collects by a prepared map: `low` and `high` hold its first four sources, `more`
// the next four. `kind` is 0, 1 or 2: no target of the map has more than 4, none more than 8, or
// some has.
template <typename T, int PARTS, typename Source>
__device__ __forceinline__ void lane_fan_in(T (&sums)[PARTS], const Source (&from)[PARTS],
                                            unsigned low, unsigned high, int kind,
                                            const unsigned* more, const unsigned char* map,
                                            int target, int n) {
#pragma unroll
  for (int part = 0; part < PARTS; ++part) sums[part] = lane_four(from[part], low, high);
  // The vote tells the compiler that the warp stays together. What is seldom run is kept out of the
  // way of what is always run, which must fit the instruction cache.
  if (__builtin_expect(__any_sync(0xffffffffu, kind), 0)) {
    if (__any_sync(0xffffffffu, kind == 1)) {
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        sums[part] += lane_four(from[part], more[0], more[1]);
      }
    } else {
      lane_collect_parts(sums, from, LaneShared<unsigned char, 1>{map}, target, n);
    }
  }
}

#define PDSSM_FAN_IN_ARGUMENTS                                                                    \
  unsigned low, unsigned high, int kind, const unsigned *more, const unsigned char *map, int i,   \
      int n

#define PDSSM_FAN_IN(T)                                                                           \
  __device__ __forceinline__ void lane_fan_in_registers(T* re, T* im, T a, T b,                   \
                                                        PDSSM_FAN_IN_ARGUMENTS) {                 \
    T sums[2];                                                                                    \
    const LaneRegisters<T> from[2] = {{a}, {b}};                                                  \
    lane_fan_in(sums, from, low, high, kind, more, map, i, n);                                    \
    *re = sums[0];                                                                                \
    *im = sums[1];                                                                                \
  }                                                                                               \
  __device__ __forceinline__ void lane_fan_in_registers(T* re, T a, PDSSM_FAN_IN_ARGUMENTS) {     \
    T sums[1];                                                                                    \
    const LaneRegisters<T> from[1] = {{a}};                                                       \
    lane_fan_in(sums, from, low, high, kind, more, map, i, n);                                    \
    *re = sums[0];                                                                                \
  }                                                                                               \
  __device__ __forceinline__ void lane_fan_in_shared(T* re, T* im, const T* values,               \
                                                     PDSSM_FAN_IN_ARGUMENTS) {                    \
    T sums[2];                                                                                    \
    const LaneShared<T, 2> from[2] = {{values}, {values + 1}};                                    \
    lane_fan_in(sums, from, low, high, kind, more, map, i, n);                                    \
    *re = sums[0];                                                                                \
    *im = sums[1];                                                                                \
  }                                                                                               \
  __device__ __forceinline__ void lane_fan_in_shared(T* re, const T* values,                      \
                                                     PDSSM_FAN_IN_ARGUMENTS) {                    \
    T sums[1];                                                                                    \
    const LaneShared<T, 1> from[1] = {{values}};                                                  \
    lane_fan_in(sums, from, low, high, kind, more, map, i, n);                                    \
    *re = sums[0];                                                                                \
  }                                                                                               \
  __device__ __forceinline__ T lane_collect_registers(T a, int map, int i, int n) {               \
    T sums[1];                                                                                    \
    const LaneRegisters<T> from[1] = {{a}};                                                       \
    lane_collect_parts(sums, from, LaneRegisters<int>{map}, i, n);                                \
    return sums[0];                                                                               \
  }                                                                                               \
  __device__ __forceinline__ T lane_collect_shared(const T* values, int stride, const int* map,   \
                                                   int i, int n) {                                \
    T sum = T(0);                                                                                 \
    _Pragma("unroll 1") for (int j = 0; j < n; ++j) {                                             \
      sum += map[j] == i ? values[j * stride] : T(0);                                             \
    }                                                                                             \
    return sum;                                                                                   \
  }

PDSSM_FAN_IN(float)
PDSSM_FAN_IN(double)

// Prepare one map of a table, by one warp: the first four sources of target `i` as 16-bit numbers
// from `fan[2 * i]` on, the next four from `fan[2 * n + 2 * i]` on, and the map's kind. `counts`
// is scratch for `n` numbers. A source's place is the number of sources before it.
template <bool REGISTERS>
__device__ __forceinline__ void lane_prepare(unsigned* fan, int* kind, int* counts,
                                             const unsigned char* map, int lane, int n) {
  const unsigned none = REGISTERS ? 0x8000u : static_cast<unsigned>(n);
  for (int word = lane; word < 4 * n; word += 32) fan[word] = none | (none << 16);
  for (int i = lane; i < n; i += 32) counts[i] = 0;
  __syncwarp();
  unsigned short* sources = reinterpret_cast<unsigned short*>(fan);
  for (int first = 0; first < n; first += 32) {
    const int j = first + lane;
    const bool here = j < n;
    const unsigned all = __ballot_sync(0xffffffffu, here);
    const int target = here ? map[j] : 0;
    unsigned peers = 0;
    if (here) {
      peers = __match_any_sync(all, target);
      const int place = counts[target] + __popc(peers & ((1u << lane) - 1));
      if (place < 8) sources[(place < 4 ? 0 : 4 * n - 4) + 4 * target + place] = j;
    }
    __syncwarp();
    // One of those with the same target counts them all.
    if (here && lane == __ffs(peers) - 1) counts[target] += __popc(peers);
    __syncwarp();
  }
  int most = 0;
  for (int i = lane; i < n; i += 32) most = max(most, counts[i]);
  most = __reduce_max_sync(0xffffffffu, most);
  if (lane == 0) *kind = most > 8 ? 2 : most > 4 ? 1 : 0;
  __syncwarp();
}

__device__ __forceinline__ void lane_prepare_registers(unsigned* fan, int* kind, int* counts,
                                                       const unsigned char* map, int lane, int n) {
  lane_prepare<true>(fan, kind, counts, map, lane, n);
}

__device__ __forceinline__ void lane_prepare_shared(unsigned* fan, int* kind, int* counts,
                                                    const unsigned char* map, int lane, int n) {
  lane_prepare<false>(fan, kind, counts, map, lane, n);
}

#endif
