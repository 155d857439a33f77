// Scatter-add without atomics by a map of a table that is prepared: every target collects its sources.

// Which sources are added first, next ones or pairs of them in the order of their numbers, follows from the
// map alone, so a sum never depends on timing. `Source` gives number `j` of what is scattered: from registers
// of other lanes (one element a lane) or from shared memory.

template <typename T>
struct LaneReal {
  T re;
  __device__ __forceinline__ LaneReal operator+(LaneReal other) const { return {re + other.re}; }
  __device__ __forceinline__ LaneReal shuffled(int lane) const {
    return {__shfl_sync(0xffffffffu, re, lane)};
  }
  __device__ __forceinline__ LaneReal shuffled_up(int step) const {
    return {__shfl_up_sync(0xffffffffu, re, step)};
  }
};

// Read and written at once.
template <typename T>
struct __align__(2 * sizeof(T)) LaneComplex {
  T re, im;
  __device__ __forceinline__ LaneComplex operator+(LaneComplex other) const {
    return {re + other.re, im + other.im};
  }
  __device__ __forceinline__ LaneComplex shuffled(int lane) const {
    return {__shfl_sync(0xffffffffu, re, lane), __shfl_sync(0xffffffffu, im, lane)};
  }
  __device__ __forceinline__ LaneComplex shuffled_up(int step) const {
    return {__shfl_up_sync(0xffffffffu, re, step), __shfl_up_sync(0xffffffffu, im, step)};
  }
};

template <typename T>
__device__ __forceinline__ void lane_put(T* to, T re, T im) {
  *reinterpret_cast<LaneComplex<T>*>(to) = {re, im};
}

// Called, not written out: what a map seldom needs, in every token that may need it, would push what
// is always run out of the instruction cache.
template <typename V>
__device__ __noinline__ V lane_add_seldom(V value, int order, int last, V* scratch, int lane, int n,
                                          int barrier, int threads) {
  return lane_add_runs(value, order, last, scratch, lane, n, barrier, threads);
}

// What a scatter's sources are read from. `all` sums those of a target of a map that has targets with
// many: of its sorted form where a lane has one element, whose `order` and `last` (here `n` for none)
// stand where the first sources of others do; otherwise by looking at every source.
template <typename V>
struct LaneRegisters {
  typedef V Value;
  V value;
  int lane;
  __device__ __forceinline__ V every(int source) const { return value.shuffled(source); }
  template <typename Entry>
  __device__ __forceinline__ V all(unsigned order, unsigned last, const Entry*, int, int n) const {
    const int end = last < n ? last : -1;
    return lane_add_seldom<V>(value.shuffled(order), order, end, nullptr, lane, n, 0, 32);
  }
};

// Of rows side by side, whose maps differ in kind: what a row's map does not need is right for it too.
template <typename V>
struct LaneSides : LaneRegisters<V> {
  template <typename Entry>
  __device__ __forceinline__ V all(unsigned, unsigned, const Entry* map, int target, int n) const {
    const int first = this->lane / n * n;
    V sum{};
#pragma unroll 1
    for (int j = 0; j < n; ++j) {
      const V value = this->value.shuffled(first + j);
      if (map[j] == target) sum = sum + value;
    }
    return sum;
  }
};

template <typename V>
struct LaneShared {
  typedef V Value;
  const V* values;
  __device__ __forceinline__ V every(int source) const { return values[source]; }
  template <typename Entry>
  __device__ __forceinline__ V all(unsigned, unsigned, const Entry* map, int target, int n) const {
    V sum{};
    // Not unrolled: it would push what is often run out of the instruction cache.
#pragma unroll 1
    for (int j = 0; j < n; ++j) {
      const V value = values[j];
      if (map[j] == target) sum = sum + value;
    }
    return sum;
  }
};

template <typename V>
struct LaneTeam : LaneShared<V> {
  V* scratch;
  int lane, barrier, threads;
  template <typename Entry>
  __device__ __forceinline__ V all(unsigned order, unsigned last, const Entry*, int, int n) const {
    const int end = last < n ? last : -1;
    const V value = this->values[order & 65535];
    return lane_add_seldom(value, order, end, scratch, lane, n, barrier, threads);
  }
};

// A shuffle reads the low five bits of a source; bit 15 marks a missing one, behind which all are
// missing. One after the other takes the fewest instructions: an addition is left out as it is.
template <typename V>
__device__ __forceinline__ V lane_add_found(V sum, V found, unsigned missing) {
  return missing ? sum : sum + found;
}

template <typename V>
__device__ __forceinline__ V lane_four(LaneRegisters<V> from, unsigned low, unsigned high) {
  const V found[4] = {from.every(low), from.every(low >> 16), from.every(high),
                      from.every(high >> 16)};
  V sum = low & 0x8000u ? V{} : found[0];
  sum = lane_add_found(sum, found[1], low & 0x80000000u);
  sum = lane_add_found(sum, found[2], high & 0x8000u);
  return lane_add_found(sum, found[3], high & 0x80000000u);
}

// A missing source is the zero kept behind the last element.
template <typename V>
__device__ __forceinline__ V lane_four(LaneShared<V> from, unsigned low, unsigned high) {
  return (from.every(low & 0xffffu) + from.every(low >> 16)) +
         (from.every(high & 0xffffu) + from.every(high >> 16));
}

// Each source with its mate: the next one on the list of the same target, for the first, third, fifth ...
// of a list. A target collects pairs then, and four exchanges bring the sources of six instead of four.
// In shared memory a second exchange would take a barrier, and sources come one by one.
template <typename V>
__device__ __forceinline__ LaneRegisters<V> lane_in_pairs(LaneRegisters<V> from, unsigned low) {
  return {lane_add_found(from.value, from.every(low), low & 0x8000u), from.lane};
}

template <typename V>
__device__ __forceinline__ LaneShared<V> lane_in_pairs(LaneShared<V> from, unsigned) {
  return from;
}

// What a target's first two words bring: of pairs three, otherwise four sources.
template <typename V>
__device__ __forceinline__ V lane_first(LaneRegisters<V> pairs, unsigned low, unsigned high) {
  const V found[3] = {pairs.every(low >> 16), pairs.every(high), pairs.every(high >> 16)};
  V sum = low & 0x80000000u ? V{} : found[0];
  sum = lane_add_found(sum, found[1], high & 0x8000u);
  return lane_add_found(sum, found[2], high & 0x80000000u);
}

template <typename V>
__device__ __forceinline__ V lane_first(LaneShared<V> from, unsigned low, unsigned high) {
  return lane_four(from, low, high);
}

// Kinds of maps, by the most sources of a target:
//
//                            in pairs   one by one
//   0: the first two words      6           4
//   1: one more                             6
//   2: two more                14           8
//   3: as many as there are
//
// What a target collects by a map of a kind up to `KIND`, 1 or 2, without a branch.
template <int KIND, typename V>
__device__ __forceinline__ V lane_few(LaneRegisters<V> from, unsigned low, unsigned high,
                                      const unsigned* more) {
  const LaneRegisters<V> pairs = lane_in_pairs(from, low);
  const V sum = lane_first(pairs, low, high);
  if constexpr (KIND == 1) return sum;
  return sum + lane_four(pairs, more[0], more[1]);
}

template <int KIND, typename V>
__device__ __forceinline__ V lane_few(LaneShared<V> from, unsigned low, unsigned high,
                                      const unsigned* more) {
  const V sum = lane_four(from, low, high);
  if constexpr (KIND == 1) {
    return sum + (from.every(more[0] & 0xffffu) + from.every(more[0] >> 16));
  }
  return sum + lane_four(from, more[0], more[1]);
}

// Raises `most` to the largest of `count` kinds of maps, in all lanes.
__device__ __forceinline__ void lane_most(int* most, const int* kinds, int count, int lane) {
  int found = *most;
  for (int i = lane; i < count; i += 32) found = max(found, kinds[i]);
  *most = __reduce_max_sync(0xffffffffu, found);
}

// Whether a number is at most this one in all lanes. The vote tells the compiler that the warp stays together.
template <int MOST>
__device__ __forceinline__ int lane_all_at_most(int number) {
  return __all_sync(0xffffffffu, number <= MOST);
}

// A bit for each lane: whether its kind is more than 1.
__device__ __forceinline__ void lane_seldom(int* bits, int kind) {
  *bits = __ballot_sync(0xffffffffu, kind > 1);
}

// What a target collects by a prepared map of any kind; `low`, `high` and `more` are what
// `lane_prepare` has left for it. Of kind 3, see `all` of what sources are read from.
template <typename Source, typename Entry>
__device__ __forceinline__ typename Source::Value lane_fan_in(
    Source from, unsigned low, unsigned high, int kind, const unsigned* more, const Entry* map,
    int target, int n) {
  const auto pairs = lane_in_pairs(from, low);
  typename Source::Value sum = lane_first(pairs, low, high);
  // The vote tells the compiler that the warp stays together. What is seldom run is kept out of the
  // way of what is always run, which must fit the instruction cache.
  if (__builtin_expect(__any_sync(0xffffffffu, kind), 0)) {
    if (__any_sync(0xffffffffu, kind == 3)) {
      sum = from.all(low, high, map, target, n);
    } else {
      sum = sum + lane_four(pairs, more[0], more[1]);
    }
  }
  return sum;
}

#define PDSSM_FEW_ARGUMENTS unsigned low, unsigned high, const unsigned *more

#define PDSSM_FAN_IN_ARGUMENTS                                                                    \
  unsigned low, unsigned high, int kind, const unsigned *more, const Entry *map, int i, int n

#define PDSSM_FAN_IN(T)                                                                           \
  template <int KIND>                                                                             \
  __device__ __forceinline__ void lane_few_registers(T* re, T* im, T a, T b,                      \
                                                     PDSSM_FEW_ARGUMENTS) {                       \
    const LaneRegisters<LaneComplex<T>> from{{a, b}, 0};                                          \
    const LaneComplex<T> sum = lane_few<KIND>(from, low, high, more);                             \
    *re = sum.re;                                                                                 \
    *im = sum.im;                                                                                 \
  }                                                                                               \
  template <int KIND>                                                                             \
  __device__ __forceinline__ void lane_few_registers(T* re, T a, PDSSM_FEW_ARGUMENTS) {           \
    *re = lane_few<KIND>(LaneRegisters<LaneReal<T>>{{a}, 0}, low, high, more).re;                 \
  }                                                                                               \
  template <int KIND>                                                                             \
  __device__ __forceinline__ void lane_few_shared(T* re, T* im, const T* values,                  \
                                                  PDSSM_FEW_ARGUMENTS) {                          \
    const LaneShared<LaneComplex<T>> from{reinterpret_cast<const LaneComplex<T>*>(values)};       \
    const LaneComplex<T> sum = lane_few<KIND>(from, low, high, more);                             \
    *re = sum.re;                                                                                 \
    *im = sum.im;                                                                                 \
  }                                                                                               \
  template <int KIND>                                                                             \
  __device__ __forceinline__ void lane_few_shared(T* re, const T* values, PDSSM_FEW_ARGUMENTS) {  \
    const LaneShared<LaneReal<T>> from{reinterpret_cast<const LaneReal<T>*>(values)};             \
    *re = lane_few<KIND>(from, low, high, more).re;                                               \
  }                                                                                               \
  template <typename Entry>                                                                       \
  __device__ __forceinline__ void lane_fan_in_registers(T* re, T* im, T a, T b, int lane,         \
                                                        PDSSM_FAN_IN_ARGUMENTS) {                 \
    const LaneRegisters<LaneComplex<T>> from{{a, b}, lane};                                       \
    const LaneComplex<T> sum = lane_fan_in(from, low, high, kind, more, map, i, n);               \
    *re = sum.re;                                                                                 \
    *im = sum.im;                                                                                 \
  }                                                                                               \
  template <typename Entry>                                                                       \
  __device__ __forceinline__ void lane_fan_in_registers(T* re, T a, int lane,                     \
                                                        PDSSM_FAN_IN_ARGUMENTS) {                 \
    const LaneRegisters<LaneReal<T>> from{{a}, lane};                                             \
    *re = lane_fan_in(from, low, high, kind, more, map, i, n).re;                                 \
  }                                                                                               \
  template <typename Entry>                                                                       \
  __device__ __forceinline__ void lane_fan_in_sides(T* re, T* im, T a, T b, int lane,             \
                                                    PDSSM_FAN_IN_ARGUMENTS) {                     \
    const LaneSides<LaneComplex<T>> from{{{a, b}, lane}};                                         \
    const LaneComplex<T> sum = lane_fan_in(from, low, high, kind, more, map, i, n);               \
    *re = sum.re;                                                                                 \
    *im = sum.im;                                                                                 \
  }                                                                                               \
  template <typename Entry>                                                                       \
  __device__ __forceinline__ void lane_fan_in_sides(T* re, T a, int lane,                         \
                                                    PDSSM_FAN_IN_ARGUMENTS) {                     \
    const LaneSides<LaneReal<T>> from{{{a}, lane}};                                               \
    *re = lane_fan_in(from, low, high, kind, more, map, i, n).re;                                 \
  }                                                                                               \
  template <typename Entry>                                                                       \
  __device__ __forceinline__ void lane_fan_in_shared(T* re, T* im, const T* values,               \
                                                     PDSSM_FAN_IN_ARGUMENTS) {                    \
    const LaneShared<LaneComplex<T>> from{reinterpret_cast<const LaneComplex<T>*>(values)};       \
    const LaneComplex<T> sum = lane_fan_in(from, low, high, kind, more, map, i, n);               \
    *re = sum.re;                                                                                 \
    *im = sum.im;                                                                                 \
  }                                                                                               \
  template <typename Entry>                                                                       \
  __device__ __forceinline__ void lane_fan_in_shared(T* re, const T* values,                      \
                                                     PDSSM_FAN_IN_ARGUMENTS) {                    \
    const LaneShared<LaneReal<T>> from{reinterpret_cast<const LaneReal<T>*>(values)};             \
    *re = lane_fan_in(from, low, high, kind, more, map, i, n).re;                                 \
  }                                                                                               \
  template <typename Entry>                                                                       \
  __device__ __forceinline__ void lane_fan_in_team(T* re, T* im, const T* values, void* scratch,  \
                                                   int lane, int barrier, int threads,            \
                                                   PDSSM_FAN_IN_ARGUMENTS) {                      \
    typedef LaneComplex<T> V;                                                                     \
    const LaneTeam<V> from{{reinterpret_cast<const V*>(values)}, static_cast<V*>(scratch), lane,  \
                           barrier, threads};                                                     \
    const V sum = lane_fan_in(from, low, high, kind, more, map, i, n);                            \
    *re = sum.re;                                                                                 \
    *im = sum.im;                                                                                 \
  }                                                                                               \
  template <typename Entry>                                                                       \
  __device__ __forceinline__ void lane_fan_in_team(T* re, const T* values, void* scratch,         \
                                                   int lane, int barrier, int threads,            \
                                                   PDSSM_FAN_IN_ARGUMENTS) {                      \
    typedef LaneReal<T> V;                                                                        \
    const LaneTeam<V> from{{reinterpret_cast<const V*>(values)}, static_cast<V*>(scratch), lane,  \
                           barrier, threads};                                                     \
    *re = lane_fan_in(from, low, high, kind, more, map, i, n).re;                                 \
  }

PDSSM_FAN_IN(float)
PDSSM_FAN_IN(double)
