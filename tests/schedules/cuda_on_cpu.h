// CUDA on a CPU: each thread is a coroutine, and what CUDA has for the lanes of a warp, for a block and
// for teams of warps is made of barriers. Between barriers threads run one after the other, in an
// order that a seed draws anew each time, and some fall behind, so a barrier that is missing shows as
// a wrong result for some seed. Functions that schedules/emit/lanes.cuh writes in assembly are here in
// C++; `lanes.h` is the rest of that file's text.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace {

struct Barrier {
  int arrived = 0;
  long phase = 0;
};

constexpr int MOST_STUCK = 8;
// Rounds in which the same warps stay behind: others may spin, waiting for them.
constexpr int MOST_ROUNDS = 64;
// The hardware's barriers of a block; the first is the block's own.
constexpr int BARRIERS = 16;
constexpr size_t STACK = 1 << 18;

int current, threads_of_block;
long progress;
bool broken;
jmp_buf scheduler;
struct Place {
  jmp_buf at;
};
std::vector<ucontext_t> starts;
std::vector<Place> places;
std::vector<char> started, done;
std::vector<Barrier> warps, parts, named;
// Whether a thread of a team has said so, in two turns.
std::vector<char> said[2];
std::vector<std::array<unsigned char, 16>> slots;
std::vector<std::vector<unsigned char>> pools;
// Copies that a thread has started, in groups; the last group is open.
struct Copy {
  void* to;
  const void* from;
  size_t size;
};
std::vector<std::vector<std::vector<Copy>>> copies;
const std::function<void(int)>* body;

// Signals' masks are not kept, which swapcontext would: a system call each time.
void yield() {
  if (!_setjmp(places[current].at)) _longjmp(scheduler, 1);
}

void go_on(int thread) {
  current = thread;
  if (_setjmp(scheduler)) return;
  if (started[thread]) _longjmp(places[thread].at, 1);
  started[thread] = 1;
  setcontext(&starts[thread]);
}

void meet(Barrier& barrier, int threads) {
  const long phase = barrier.phase;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.phase;
    ++progress;
  }
  while (barrier.phase == phase) yield();
}

void thread_main() {
  (*body)(current);
  done[current] = 1;
  ++progress;
  yield();
}

// Whether every thread came to its end and none broke a rule. `pool` is the shared memory of a block.
bool run_threads(int blocks, int threads, size_t pool, int seed,
                 const std::function<void(int)>& each) {
  const int all = blocks * threads;
  std::mt19937 random(seed);
  std::vector<std::vector<char>> stacks(all, std::vector<char>(STACK));
  threads_of_block = threads;
  broken = false;
  starts.assign(all, {});
  places.assign(all, {});
  started.assign(all, 0);
  done.assign(all, 0);
  slots.assign(all, {});
  warps.assign((all + 31) / 32, {});
  parts.assign((all + 31) / 32, {});
  named.assign(blocks * BARRIERS, {});
  for (auto& turn : said) turn.assign(blocks * BARRIERS, 0);
  copies.assign(all, std::vector<std::vector<Copy>>(1));
  pools.assign(blocks, std::vector<unsigned char>(pool, 0x5a));
  body = &each;
  for (int thread = 0; thread < all; ++thread) {
    getcontext(&starts[thread]);
    starts[thread].uc_stack.ss_sp = stacks[thread].data();
    starts[thread].uc_stack.ss_size = STACK;
    makecontext(&starts[thread], thread_main, 0);
  }
  std::vector<int> order(all);
  std::iota(order.begin(), order.end(), 0);
  // Some warps, or some lanes, fall behind until nothing goes on without them; then others do.
  unsigned slow_warps = random(), slow_lanes = 0;
  long rounds = 0;
  for (int stuck = 0; stuck <= MOST_STUCK && !broken;) {
    const long before = progress;
    std::shuffle(order.begin(), order.end(), random);
    for (const int thread : order) {
      if (done[thread] || slow_warps >> thread / 32 % 32 & 1 || slow_lanes >> thread % 32 & 1) {
        continue;
      }
      go_on(thread);
    }
    if (++rounds % MOST_ROUNDS == 0) {
      slow_warps = random() & random();
      slow_lanes = 0;
    }
    if (before != progress) {
      stuck = 0;
      continue;
    }
    // In the end all run: what does not go on then is never done.
    const bool last = ++stuck == MOST_STUCK;
    slow_warps = last ? 0 : random();
    slow_lanes = last || random() % 2 ? 0 : random() & random();
  }
  return !broken && std::count(done.begin(), done.end(), 1) == all;
}

// What every lane of a mask gives, in every lane of it.
template <typename T>
void shared_values(unsigned mask, T mine, T (&all)[32]) {
  const int warp = current / 32, count = __builtin_popcount(mask);
  Barrier& barrier = count == 32 ? warps[warp] : parts[warp];
  std::memcpy(slots[current].data(), &mine, sizeof mine);
  meet(barrier, count);
  for (int lane = 0; lane < 32; ++lane) {
    std::memcpy(&all[lane], slots[warp * 32 + lane].data(), sizeof mine);
  }
  meet(barrier, count);
}

template <typename To, typename From>
To bits_of(From from) {
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace

#define __device__
#define __global__
#define __restrict__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__
#define __align__(bytes) alignas(bytes)

float __fdividef(float a, float b) { return a / b; }

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

unsigned __match_any_sync(unsigned mask, int value) {
  int all[32];
  shared_values(mask, value, all);
  unsigned found = 0;
  for (int lane = 0; lane < 32; ++lane) found |= unsigned(all[lane] == value) << lane;
  return found & mask;
}

unsigned __ballot_sync(unsigned mask, bool said) {
  int all[32];
  shared_values(mask, int(said), all);
  unsigned found = 0;
  for (int lane = 0; lane < 32; ++lane) found |= unsigned(all[lane] != 0) << lane;
  return found & mask;
}

bool __any_sync(unsigned mask, bool said) { return __ballot_sync(mask, said) != 0; }
bool __all_sync(unsigned mask, bool said) { return __ballot_sync(mask, said) == mask; }

int __reduce_max_sync(unsigned mask, int value) {
  int all[32];
  shared_values(mask, value, all);
  return *std::max_element(all, all + 32);
}

void __syncwarp() { meet(warps[current / 32], 32); }

int __ffs(unsigned bits) { return __builtin_ffs(int(bits)); }
int __popc(unsigned bits) { return __builtin_popcount(bits); }
int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }

unsigned __brev(unsigned bits) {
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

int atomicMax(int* to, int value) { return std::exchange(*to, std::max(*to, value)); }

struct float2 {
  float x, y;
};
struct double2 {
  double x, y;
};
float2 make_float2(float x, float y) { return {x, y}; }
double2 make_double2(double x, double y) { return {x, y}; }

template <typename T>
void __stcs(T* to, T value) {
  *to = value;
}

size_t __cvta_generic_to_shared(const void* place) { return reinterpret_cast<size_t>(place); }
unsigned __float_as_uint(float value) { return bits_of<unsigned>(value); }
float __uint_as_float(unsigned bits) { return bits_of<float>(bits); }
int __double2loint(double value) { return int(bits_of<unsigned long long>(value)); }
int __double2hiint(double value) { return int(bits_of<unsigned long long>(value) >> 32); }
double __hiloint2double(int high, int low) {
  return bits_of<double>(static_cast<unsigned long long>(unsigned(high)) << 32 | unsigned(low));
}

struct Threads {
  struct Number {
    operator int() const { return current % threads_of_block; }
  } x;
} threadIdx;
struct Blocks {
  struct Number {
    operator int() const { return current / threads_of_block; }
  } x;
} blockIdx;

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;

Barrier& barrier_of_block(int barrier) {
  return named[current / threads_of_block * BARRIERS + barrier];
}

void __syncthreads() { meet(barrier_of_block(0), threads_of_block); }
void tvm_builtin_cuda_cta_sync() { __syncthreads(); }
void tvm_builtin_cuda_warp_sync() { __syncwarp(); }

uchar* shared_memory() { return pools[current / threads_of_block].data(); }

// Within the block's shared memory, and where a copy of this size may go.
bool may_hold(const void* place, size_t size) {
  const std::vector<uchar>& pool = pools[current / threads_of_block];
  const uchar* at = static_cast<const uchar*>(place);
  return at >= pool.data() && at + size <= pool.data() + pool.size() &&
         reinterpret_cast<size_t>(place) % size == 0;
}

void copied(void* to, const void* from, size_t size) {
  if (!may_hold(to, size) || reinterpret_cast<size_t>(from) % size) {
    broken = true;
    yield();
  }
  // Nobody may read it before the copy has come, nor write.
  std::memset(to, 0xff, size);
  copies[current].back().push_back({to, from, size});
}

// All groups of this thread's copies but so many have come.
void arrive_but(size_t groups) {
  std::vector<std::vector<Copy>>& mine = copies[current];
  for (; mine.size() > groups + 1; mine.erase(mine.begin())) {
    for (const Copy& copy : mine.front()) std::memcpy(copy.to, copy.from, copy.size);
  }
}

void lane_team_sync(int barrier, int threads) {
  __syncwarp();
  meet(barrier_of_block(barrier), threads);
}

bool lane_team_any(bool says, int barrier, int threads) {
  Barrier& team = barrier_of_block(barrier);
  char& here = said[team.phase / 2 % 2][&team - named.data()];
  if (says) here = 1;
  meet(team, threads);
  const bool found = here;
  meet(team, threads);
  here = 0;
  return found;
}

void lane_copy16(void* to, const void* from) { copied(to, from, 16); }
void lane_copy8(void* to, const void* from) { copied(to, from, 8); }
void lane_copy4(void* to, const void* from) { copied(to, from, 4); }
void lane_copies_group() { copies[current].emplace_back(); }
void lane_copies_but_last() { arrive_but(1); }
void lane_copies_done() {
  lane_copies_group();
  arrive_but(0);
}

// A barrier in shared memory: how many arrivals make a phase, how many there are, the phase.
struct Arrivals {
  uint16_t wanted, found;
  uint32_t phase;
};

void lane_barrier_init(void* barrier, int arrivals) {
  *static_cast<Arrivals*>(barrier) = {static_cast<uint16_t>(arrivals), 0, 0};
}

void lane_arrive(void* barrier) {
  Arrivals& here = *static_cast<Arrivals*>(barrier);
  if (++here.found == here.wanted) {
    here.found = 0;
    ++here.phase;
  }
  ++progress;
}

void lane_arrive_with_copies(void* barrier) {
  lane_copies_done();
  lane_arrive(barrier);
}

void lane_wait(void* barrier, int parity) {
  const Arrivals& here = *static_cast<Arrivals*>(barrier);
  while (static_cast<int>(here.phase & 1) == parity) yield();
}

void lane_publish(int* flag, int lane) {
  if (lane == 0) {
    *flag = 1;
    ++progress;
  }
}

void lane_await(const int* flags, long long stride, int count, int lane) {
  lane %= 32;
  while (lane < count && !flags[lane * stride]) yield();
  __syncwarp();
}

void lane_post_word(unsigned long long* word, unsigned bits) {
  *word = (1ull << 32) | bits;
  ++progress;
}

bool lane_take_word(const unsigned long long* word, unsigned* bits) {
  if (!(*word >> 32)) yield();
  *bits = static_cast<unsigned>(*word);
  return *word >> 32;
}

void lane_post_near_word(unsigned long long* word, unsigned bits, unsigned mark) {
  if (!may_hold(word, 8)) broken = true;
  *word = static_cast<unsigned long long>(mark) << 32 | bits;
  ++progress;
}

bool lane_take_near_word(const unsigned long long* word, unsigned* bits, unsigned mark) {
  if (*word >> 32 != mark) yield();
  *bits = static_cast<unsigned>(*word);
  return *word >> 32 == mark;
}

#include "lanes.h"
