// Warps that hold a row together, each lane with its elements: results, and numbers of other lanes.

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
