// CUDA on a CPU: what the text of a kernel uses of CUDA, in C++, as cuda_on_cpu.cpp runs it. Functions
// that schedules/emit/lanes/ writes in assembly are here too; `lanes.h` is the rest of their
// text. All of it is inline: a kernel compiles what it calls.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

// The thread that runs, of all blocks'.
extern int current, threads_of_block;
// Each change that others may wait for is counted.
extern long progress;
// Whether a thread has broken a rule.
extern bool broken;

// Whether every thread came to its end and none broke a rule. Each calls `each(with)`; `pool` is the
// shared memory of a block, and each `cluster` blocks reach one another's.
bool run_threads(int blocks, int cluster, int threads, size_t pool, int seed, void (*each)(void*),
                 void* with);
// Let others run.
void yield();
// All threads of a warp, of a block, of a cluster, or so many at one of a block's barriers have come
// here.
void meet_warp();
void meet_block();
void meet_cluster();
void meet_at(int barrier, int threads);
// What every lane of a mask gives, of so many bytes, in every lane of it.
void share(unsigned mask, const void* mine, void* all, size_t size);
// Whether any thread of a team says so.
bool any_at(bool says, int barrier, int threads);
// This block's, and whether it holds a place of this size, aligned as a copy needs it.
unsigned char* shared_memory();
bool may_hold(const void* place, size_t size);
// The same place of another block of the cluster, by its number there; null if there is none.
void* across(void* place, int block);
// A copy that this thread starts, and groups of them: end one; all but the last so many have come.
void copied(void* to, const void* from, size_t size);
void end_group();
void arrive_but(size_t groups);

template <typename T>
void shared_values(unsigned mask, T mine, T (&all)[32]) {
  share(mask, &mine, all, sizeof mine);
}

template <typename To, typename From>
To bits_of(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

#define __device__
#define __global__
#define __restrict__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ inline
#define __align__(bytes) alignas(bytes)


template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  T all[32];
  shared_values(mask, value, all);
  return all[lane & 31];
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, int step) {
  const int lane = current % 32;
  return __shfl_sync(mask, value, lane < step ? lane : lane - step);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int step) {
  return __shfl_sync(mask, value, current % 32 ^ step);
}

inline unsigned __match_any_sync(unsigned mask, int value) {
  int all[32];
  shared_values(mask, value, all);
  unsigned found = 0;
  for (int lane = 0; lane < 32; ++lane) found |= unsigned(all[lane] == value) << lane;
  return found & mask;
}

inline unsigned __ballot_sync(unsigned mask, bool said) {
  int all[32];
  shared_values(mask, int(said), all);
  unsigned found = 0;
  for (int lane = 0; lane < 32; ++lane) found |= unsigned(all[lane] != 0) << lane;
  return found & mask;
}

inline bool __any_sync(unsigned mask, bool said) { return __ballot_sync(mask, said) != 0; }
inline bool __all_sync(unsigned mask, bool said) { return __ballot_sync(mask, said) == mask; }

inline int __reduce_max_sync(unsigned mask, int value) {
  int all[32];
  shared_values(mask, value, all);
  return *std::max_element(all, all + 32);
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  unsigned all[32];
  shared_values(mask, value, all);
  return *std::max_element(all, all + 32);
}

inline void __syncwarp() { meet_warp(); }

inline int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }

inline unsigned __brev(unsigned bits) {
  unsigned found = 0;
  for (int bit = 0; bit < 32; ++bit) found |= (bits >> bit & 1) << (31 - bit);
  return found;
}

using std::abs;
using std::max;
using std::min;

template <typename T>
T atomicAdd(T* to, T value) {
  return std::exchange(*to, *to + value);
}

inline int atomicExch(int* to, int value) { return std::exchange(*to, value); }
inline int atomicMax(int* to, int value) { return std::exchange(*to, std::max(*to, value)); }

struct float2 {
  float x, y;
};
struct double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

template <typename T>
void __stcs(T* to, T value) {
  *to = value;
}

inline size_t __cvta_generic_to_shared(const void* place) { return reinterpret_cast<size_t>(place); }
inline unsigned __float_as_uint(float value) { return bits_of<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return bits_of<float>(bits); }
inline int __double2loint(double value) { return int(bits_of<unsigned long long>(value)); }
inline int __double2hiint(double value) { return int(bits_of<unsigned long long>(value) >> 32); }
inline double __hiloint2double(int high, int low) {
  return bits_of<double>(static_cast<unsigned long long>(unsigned(high)) << 32 | unsigned(low));
}

inline struct Threads {
  struct Number {
    operator int() const { return current % threads_of_block; }
  } x;
} threadIdx;
inline struct Blocks {
  struct Number {
    operator int() const { return current / threads_of_block; }
  } x;
} blockIdx;

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
#ifdef __FLT16_MANT_DIG__
typedef _Float16 half;
#endif

inline void __syncthreads() { meet_block(); }
inline void tvm_builtin_cuda_cta_sync() { __syncthreads(); }
inline void tvm_builtin_cuda_warp_sync() { __syncwarp(); }

inline void lane_team_sync(int barrier, int threads) {
  __syncwarp();
  meet_at(barrier, threads);
}

inline bool lane_team_any(bool says, int barrier, int threads) { return any_at(says, barrier, threads); }

inline float lane_reciprocal(float x) { return 1.0f / x; }

inline unsigned short lane_bfloat16(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return 0x7fff;
  return static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// By hand, for not every compiler has the type.
inline float lane_of_float16(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float x = exponent == 31  ? (fraction ? NAN : INFINITY)
            : exponent == 0 ? std::ldexp(float(fraction), -24)
                            : std::ldexp(float(fraction + 1024), exponent - 25);
  return bits >> 15 ? -x : x;
}

inline unsigned short lane_float16(float x) {
  const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (size != size) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  int exponent;
  std::frexp(size, &exponent);
  // The place of a float16's last bit; rounding may carry into the next exponent, as it should.
  const int last = std::max(exponent - 11, -24);
  const unsigned units = unsigned(std::nearbyint(std::ldexp(size, -last)));
  return sign | static_cast<unsigned short>(units + ((last + 24) << 10));
}

inline void lane_wait_for_others() {}
inline void lane_copy16(void* to, const void* from) { copied(to, from, 16); }
inline void lane_copy8(void* to, const void* from) { copied(to, from, 8); }
inline void lane_copy4(void* to, const void* from) { copied(to, from, 4); }
inline void lane_copies_group() { end_group(); }
inline void lane_copies_but_last() { arrive_but(1); }
inline void lane_copies_done() {
  lane_copies_group();
  arrive_but(0);
}

// A barrier in shared memory: how many arrivals make a phase, how many there are, the phase.
struct Arrivals {
  uint16_t wanted, found;
  uint32_t phase;
};

inline void lane_barrier_init(void* barrier, int arrivals) {
  *static_cast<Arrivals*>(barrier) = {static_cast<uint16_t>(arrivals), 0, 0};
}

inline void lane_arrive(void* barrier) {
  Arrivals& here = *static_cast<Arrivals*>(barrier);
  if (++here.found == here.wanted) {
    here.found = 0;
    ++here.phase;
  }
  ++progress;
}

inline void lane_arrive_with_copies(void* barrier) {
  lane_copies_done();
  lane_arrive(barrier);
}

inline void lane_wait(void* barrier, int parity) {
  const Arrivals& here = *static_cast<Arrivals*>(barrier);
  while (static_cast<int>(here.phase & 1) == parity) yield();
}

inline void lane_publish(int* flag, int lane) {
  if (lane == 0) {
    *flag = 1;
    ++progress;
  }
}

inline void lane_await(const int* flags, long long stride, int count, int lane) {
  lane %= 32;
  while (lane < count && !flags[lane * stride]) yield();
  __syncwarp();
}

inline void lane_post_word(unsigned long long* word, unsigned bits) {
  *word = (1ull << 32) | bits;
  ++progress;
}

inline bool lane_take_word(const unsigned long long* word, unsigned* bits) {
  if (!(*word >> 32)) yield();
  *bits = static_cast<unsigned>(*word);
  return *word >> 32;
}

inline void lane_post_near_word(unsigned long long* word, unsigned bits, unsigned mark) {
  if (!may_hold(word, 8)) broken = true;
  *word = static_cast<unsigned long long>(mark) << 32 | bits;
  ++progress;
}

inline void lane_post_across_word(unsigned long long* word, unsigned bits, unsigned mark, int block) {
  void* there = across(word, block);
  if (!may_hold(word, 8) || !there) {
    broken = true;
    return;
  }
  *static_cast<unsigned long long*>(there) = static_cast<unsigned long long>(mark) << 32 | bits;
  ++progress;
}

inline void lane_cluster_sync() { meet_cluster(); }

inline bool lane_take_near_word(const unsigned long long* word, unsigned* bits, unsigned mark) {
  if (*word >> 32 != mark) yield();
  *bits = static_cast<unsigned>(*word);
  return *word >> 32 == mark;
}

#include "lanes.h"
