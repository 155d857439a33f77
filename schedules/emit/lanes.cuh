// Device functions of kernels that run a row on the lanes of a warp (schedules/emit/tvm_lanes.py).
// TVM repeats the text before every function that needs it: hence the guard.
#ifndef PDSSM_LANES
#define PDSSM_LANES

// -- launches that overlap ------------------------------------------------------------------------

// Waits for the kernels before this one, which may have been launched while the last of them ended.
__device__ __forceinline__ void lane_wait_for_others() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

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

// Waits for every copy this thread has started.
__device__ __forceinline__ void lane_copies_done() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Makes a group of the copies this thread has started since the last one.
__device__ __forceinline__ void lane_copies_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for every group but the last.
__device__ __forceinline__ void lane_copies_but_last() {
  asm volatile("cp.async.wait_group 1;" ::: "memory");
}

// -- functions of numbers -----------------------------------------------------------------------
//
// Those of the CUDA library bring their path for huge arguments, and a division its path for tiny
// ones, to every place they are written out at; two calls of one argument share what is the same.

// How far a number is from the nearest multiple of pi/2, and which that is, modulo four. The parts of pi/2
// are each as exact as a float; the first product is subtracted exactly.
__device__ __forceinline__ float lane_from_quarter(float x, int* quarter) {
  // Numbers of this size are whole, and their last bits are the quarter's: rounding and converting
  // would take a slower pipe.
  const float shifted = fmaf(x, 0.636619747f, 12582912.0f), q = shifted - 12582912.0f;
  *quarter = static_cast<int>(__float_as_uint(shifted));
  float r = fmaf(-q, 1.57079637f, x);
  r = fmaf(-q, -4.37113883e-8f, r);
  return fmaf(-q, -1.71512451e-15f, r);
}

// Sine and cosine within an eighth of a turn, by polynomials with the least largest error.
__device__ __forceinline__ float lane_near_sine(float r) {
  const float s = r * r;
  const float p = fmaf(fmaf(-1.95172339e-4f, s, 8.332178e-3f), s, -1.66666552e-1f);
  return fmaf(p * s, r, r);
}

__device__ __forceinline__ float lane_near_cosine(float r) {
  const float s = r * r;
  const float p = fmaf(fmaf(2.44383791e-5f, s, -1.38873665e-3f), s, 4.16666456e-2f);
  return fmaf(fmaf(p, s, -0.5f), s, 1.0f);
}

__device__ __noinline__ float lane_far_sine(float x) { return sinf(x); }
__device__ __noinline__ float lane_far_cosine(float x) { return cosf(x); }

// Largest error 1.5 units in the last place. Those `within` are for arguments up to LANE_NEAR, and
// have no branch, across which the compiler would not mix the instructions of several calls.
#define LANE_NEAR 48000.0f

__device__ __forceinline__ float lane_sin_within(float x) {
  int quarter;
  const float r = lane_from_quarter(x, &quarter);
  const float found = quarter & 1 ? lane_near_cosine(r) : lane_near_sine(r);
  return quarter & 2 ? -found : found;
}

__device__ __forceinline__ float lane_cos_within(float x) {
  int quarter;
  const float r = lane_from_quarter(x, &quarter);
  const float found = quarter & 1 ? lane_near_sine(r) : lane_near_cosine(r);
  return (quarter + 1) & 2 ? -found : found;
}

__device__ __forceinline__ float lane_sin(float x) {
  return fabsf(x) > LANE_NEAR ? lane_far_sine(x) : lane_sin_within(x);
}

__device__ __forceinline__ float lane_cos(float x) {
  return fabsf(x) > LANE_NEAR ? lane_far_cosine(x) : lane_cos_within(x);
}

// Within a unit in the last place, of divisors from 1 on; infinity gives 0.
__device__ __forceinline__ float lane_reciprocal(float x) {
  float found;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
  return found;
}

__device__ __forceinline__ float lane_sigmoid(float x) {
  return lane_reciprocal(1.0f + expf(-x));
}

__device__ __forceinline__ double lane_sin(double x) { return sin(x); }
__device__ __forceinline__ double lane_cos(double x) { return cos(x); }
__device__ __forceinline__ double lane_sin_within(double x) { return sin(x); }
__device__ __forceinline__ double lane_cos_within(double x) { return cos(x); }
__device__ __forceinline__ double lane_sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// The bits of the nearest bfloat16, the even one of two; one instruction.
__device__ __forceinline__ unsigned short lane_bfloat16(float x) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

// -- from warp to warp, anywhere on the device --------------------------------------------------

// Tells that what the warps have written, before they met, can be read.
__device__ __forceinline__ void lane_publish(int* flag, int lane) {
  if (lane == 0) asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(flag) : "memory");
}

// Waits for `count` flags, at most 32, `stride` apart.
__device__ __forceinline__ void lane_await(const int* flags, long long stride, int count,
                                           int lane) {
  lane %= 32;
  int there = lane >= count;
  do {
    if (!there) {
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];"
                   : "=r"(there)
                   : "l"(flags + lane * stride)
                   : "memory");
    }
  } while (!__all_sync(0xffffffffu, there));
  __syncwarp();
}

// A value that another warp waits for travels in words of its own, each 32 bits of it and a mark, so
// that it needs no flag behind it, which would wait for every store before it. In global memory words
// are zero before and the mark is 1; in shared memory they are used again, with another mark.
__device__ __forceinline__ void lane_post_word(unsigned long long* word, unsigned bits) {
  const unsigned long long marked = (1ull << 32) | bits;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(marked) : "memory");
}

__device__ __forceinline__ bool lane_take_word(const unsigned long long* word, unsigned* bits) {
  unsigned long long marked;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(marked) : "l"(word) : "memory");
  *bits = static_cast<unsigned>(marked);
  return marked >> 32;
}

__device__ __forceinline__ void lane_post_near_word(unsigned long long* word, unsigned bits,
                                                    unsigned mark) {
  const unsigned long long marked = static_cast<unsigned long long>(mark) << 32 | bits;
  asm volatile("st.volatile.shared.u64 [%0], %1;" ::"r"(lane_shared(word)), "l"(marked)
               : "memory");
}

__device__ __forceinline__ bool lane_take_near_word(const unsigned long long* word, unsigned* bits,
                                                    unsigned mark) {
  unsigned long long marked;
  asm volatile("ld.volatile.shared.u64 %0, [%1];"
               : "=l"(marked)
               : "r"(lane_shared(word))
               : "memory");
  *bits = static_cast<unsigned>(marked);
  return marked >> 32 == mark;
}

struct LaneFar {
  unsigned long long* words;
  __device__ __forceinline__ void post(int at, unsigned bits) const {
    lane_post_word(words + at, bits);
  }
  __device__ __forceinline__ bool take(int at, unsigned* bits) const {
    return lane_take_word(words + at, bits);
  }
};

struct LaneNear {
  unsigned long long* words;
  unsigned mark;
  __device__ __forceinline__ void post(int at, unsigned bits) const {
    lane_post_near_word(words + at, bits, mark);
  }
  __device__ __forceinline__ bool take(int at, unsigned* bits) const {
    return lane_take_near_word(words + at, bits, mark);
  }
};

template <typename Place>
__device__ __forceinline__ void lane_post_real(Place place, int at, int step, float value) {
  place.post(at, __float_as_uint(value));
}

template <typename Place>
__device__ __forceinline__ void lane_post_real(Place place, int at, int step, double value) {
  place.post(at, __double2loint(value));
  place.post(at + step, __double2hiint(value));
}

template <typename Place>
__device__ __forceinline__ bool lane_take_real(Place place, int at, int step, float* value) {
  unsigned bits;
  const bool there = place.take(at, &bits);
  *value = __uint_as_float(bits);
  return there;
}

template <typename Place>
__device__ __forceinline__ bool lane_take_real(Place place, int at, int step, double* value) {
  unsigned low, high;
  const bool there = place.take(at, &low) & place.take(at + step, &high);
  *value = __hiloint2double(high, low);
  return there;
}

// Words lie by part, then by half, then by element; `lanes` lanes hold the row.
template <typename Place, typename T>
__device__ __forceinline__ void lane_post_parts(const T* const* parts, int count, Place place,
                                                int lane, int lanes, int n) {
  const int each = sizeof(T) / 4 * n;
#pragma unroll
  for (int e = 0; e * lanes < n; ++e) {
    const int j = e * lanes + lane;
    if (j < n) {
#pragma unroll
      for (int part = 0; part < count; ++part) {
        lane_post_real(place, part * each + j, n, parts[part][e]);
      }
    }
  }
}

template <typename Place, typename T>
__device__ __forceinline__ void lane_take_parts(T* const* parts, int count, Place place, int lane,
                                                int lanes, int n) {
  const int each = sizeof(T) / 4 * n;
  bool there;
  do {
    there = true;
#pragma unroll
    for (int e = 0; e * lanes < n; ++e) {
      const int j = min(e * lanes + lane, n - 1);
#pragma unroll
      for (int part = 0; part < count; ++part) {
        there &= lane_take_real(place, part * each + j, n, parts[part] + e);
      }
    }
  } while (!__all_sync(0xffffffffu, there));
}

__device__ __forceinline__ LaneFar lane_far(const void* words) {
  return {static_cast<unsigned long long*>(const_cast<void*>(words))};
}

__device__ __forceinline__ LaneNear lane_near(const void* words, unsigned mark) {
  return {static_cast<unsigned long long*>(const_cast<void*>(words)), mark};
}

#define PDSSM_PASS_TO(T, NAME, PLACE, ...)                                                        \
  __device__ __forceinline__ void lane_post##NAME(const T* re, const T* im, __VA_ARGS__,          \
                                                  int lane, int lanes, int n) {                   \
    const T* const parts[2] = {re, im};                                                           \
    lane_post_parts(parts, 2, PLACE, lane, lanes, n);                                             \
  }                                                                                               \
  __device__ __forceinline__ void lane_post##NAME(const T* re, __VA_ARGS__, int lane, int lanes,  \
                                                  int n) {                                        \
    const T* const parts[1] = {re};                                                               \
    lane_post_parts(parts, 1, PLACE, lane, lanes, n);                                             \
  }                                                                                               \
  __device__ __forceinline__ void lane_take##NAME(T* re, T* im, __VA_ARGS__, int lane, int lanes, \
                                                  int n) {                                        \
    T* const parts[2] = {re, im};                                                                 \
    lane_take_parts(parts, 2, PLACE, lane, lanes, n);                                             \
  }                                                                                               \
  __device__ __forceinline__ void lane_take##NAME(T* re, __VA_ARGS__, int lane, int lanes,        \
                                                  int n) {                                        \
    T* const parts[1] = {re};                                                                     \
    lane_take_parts(parts, 1, PLACE, lane, lanes, n);                                             \
  }

#define PDSSM_PASS(T)                                                                             \
  PDSSM_PASS_TO(T, , lane_far(words), const void* words)                                          \
  PDSSM_PASS_TO(T, _near, lane_near(words, mark), const void* words, unsigned mark)

PDSSM_PASS(float)
PDSSM_PASS(double)

// The place of the largest of `count` 16-bit floats, the first of equal ones, by a warp; -1 if one is a
// NaN. `infinity` is the bits of theirs.
__device__ __forceinline__ int lane_largest(const void* numbers, int count, int infinity, int lane) {
  const unsigned short* number = static_cast<const unsigned short*>(numbers);
  unsigned largest = 0;
  bool wrong = false;
  for (int k = lane % 32; k < count; k += 32) {
    const int bits = number[k], size = bits & 32767;
    wrong |= size > infinity;
    // Grows as the number does; both zeros are alike. Of equal ones the first has the largest word.
    const unsigned rank = 32768 + (bits & 32768 ? -size : size);
    largest = max(largest, rank << 16 | (65535u - k));
  }
  if (__any_sync(0xffffffffu, wrong)) return -1;
  return 65535 - (__reduce_max_sync(0xffffffffu, largest) & 65535u);
}

// A number that all lanes of a warp have, told to the compiler: what depends on it does not part them.
__device__ __forceinline__ int lane_alike(int number) {
  return __shfl_sync(0xffffffffu, number, 0);
}

// -- warps that hold a row together -------------------------------------------------------------
//
// A team of warps, each lane with its elements. `barrier` is the team's own, of the hardware's 16.

// Lanes that have parted meet first: the barrier takes whole warps.
__device__ __forceinline__ void lane_team_sync(int barrier, int threads) {
  __syncwarp();
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Whether any thread of the team says so; orders memory as `lane_team_sync` does.
__device__ __forceinline__ bool lane_team_any(bool said, int barrier, int threads) {
  int any;
  __syncwarp();
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.s32 p, %1, 0;\n bar.red.or.pred p, %2, %3, p;\n"
      " selp.s32 %0, 1, 0, p;\n}"
      : "=r"(any)
      : "r"(static_cast<int>(said)), "r"(barrier), "r"(threads)
      : "memory");
  return any;
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

// The sum over the lanes up to this one.
__device__ __forceinline__ int lane_sum_through(int value, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, value, step);
    if (lane >= step) value += before;
  }
  return value;
}

// The sum over the warp, the same bits in every lane.
template <typename T>
__device__ __forceinline__ T lane_sum(T value) {
#pragma unroll
  for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The sum over the `n` lanes of a row, of rows side by side, that `lane` is one of; the same bits in
// all of them. `even`: rows fill the warp, each with a power of two.
template <typename T>
__device__ __forceinline__ T lane_side_sum(T value, int lane, int n, bool even) {
  if (even) {
#pragma unroll
    for (int step = n / 2; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
  }
  const int first = lane / n * n;
  T sum = __shfl_sync(0xffffffffu, value, first);
#pragma unroll
  for (int j = 1; j < n; ++j) sum += __shfl_sync(0xffffffffu, value, first + j);
  return sum;
}

// Over a team; `parts` is scratch for a number a warp.
template <typename T>
__device__ __forceinline__ T lane_team_sum(T value, T* parts, int lane, int barrier,
                                           int threads) {
  value = lane_sum(value);
  if (lane % 32 == 0) parts[lane / 32] = value;
  lane_team_sync(barrier, threads);
  T total = parts[0];
  for (int warp = 1; warp < threads / 32; ++warp) total += parts[warp];
  lane_team_sync(barrier, threads);
  return total;
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

// That sum over a team; `scratch` has room for a number for each warp and token.
template <typename T>
__device__ __forceinline__ T lane_team_merged(T value, T* scratch, int lane, int token, int tokens,
                                              int barrier, int threads) {
  scratch[lane / 32 * tokens + token] = value;
  lane_team_sync(barrier, threads);
  T total = scratch[token];
  for (int warp = 1; warp < threads / 32; ++warp) total += scratch[warp * tokens + token];
  lane_team_sync(barrier, threads);
  return total;
}

__device__ __forceinline__ void lane_max(int* place, int value) { atomicMax(place, value); }

// -- sums over runs -----------------------------------------------------------------------------
//
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

// -- scatter-add without atomics: every target collects its sources -----------------------------
//
// Sources are added in the order of their numbers, four at a time, so a sum never depends on
// timing. `Source` gives number `j` of what is scattered: from registers of other lanes (one
// element a lane) or from shared memory.

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

// -- scatter-add by a map that is known only now ------------------------------------------------
//
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

// -- the same by lists that are made together ---------------------------------------------------
//
// By a team. Every source puts itself before the others of its target's list, in whatever order they come
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

// -- scatter-add by a map that is sorted before -------------------------------------------------
//
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

#endif
