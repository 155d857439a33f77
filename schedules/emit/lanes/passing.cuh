// Values that pass from warp to warp, anywhere on the device.

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

// As in this block's own memory, in that of another block of its cluster, by its number there.
__device__ __forceinline__ void lane_post_across_word(unsigned long long* word, unsigned bits,
                                                      unsigned mark, int block) {
#if __CUDA_ARCH__ >= 900
  const unsigned long long marked = static_cast<unsigned long long>(mark) << 32 | bits;
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(lane_shared(word)), "r"(block));
  asm volatile("st.relaxed.cluster.shared::cluster.u64 [%0], %1;" ::"r"(there), "l"(marked)
               : "memory");
#endif
}

// What the threads of a cluster's blocks have written before, all of them can read after.
__device__ __forceinline__ void lane_cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
#endif
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

struct LaneAcross {
  unsigned long long* words;
  unsigned mark;
  int block;
  __device__ __forceinline__ void post(int at, unsigned bits) const {
    lane_post_across_word(words + at, bits, mark, block);
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

__device__ __forceinline__ LaneAcross lane_across(const void* words, unsigned mark, int block) {
  return {static_cast<unsigned long long*>(const_cast<void*>(words)), mark, block};
}

#define PDSSM_POST_TO(T, NAME, PLACE, ...)                                                        \
  __device__ __forceinline__ void lane_post##NAME(const T* re, const T* im, __VA_ARGS__,          \
                                                  int lane, int lanes, int n) {                   \
    const T* const parts[2] = {re, im};                                                           \
    lane_post_parts(parts, 2, PLACE, lane, lanes, n);                                             \
  }                                                                                               \
  __device__ __forceinline__ void lane_post##NAME(const T* re, __VA_ARGS__, int lane, int lanes,  \
                                                  int n) {                                        \
    const T* const parts[1] = {re};                                                               \
    lane_post_parts(parts, 1, PLACE, lane, lanes, n);                                             \
  }

#define PDSSM_TAKE_FROM(T, NAME, PLACE, ...)                                                      \
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
  PDSSM_POST_TO(T, , lane_far(words), const void* words)                                          \
  PDSSM_TAKE_FROM(T, , lane_far(words), const void* words)                                        \
  PDSSM_POST_TO(T, _near, lane_near(words, mark), const void* words, unsigned mark)               \
  PDSSM_TAKE_FROM(T, _near, lane_near(words, mark), const void* words, unsigned mark)             \
  PDSSM_POST_TO(T, _across, lane_across(words, mark, block), const void* words, unsigned mark,    \
                int block)

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
