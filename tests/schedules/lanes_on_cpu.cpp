// The device functions of schedules/emit/lanes.cuh on a CPU: each lane is a coroutine, and what
// CUDA has for lanes of a warp or a team is made of barriers. Between barriers the lanes run one
// after the other, in an order that a seed draws anew each time, so a barrier that is missing shows
// as a wrong sum for some seed. `lanes.h` is their text without the two functions that are defined
// here; assembly is left out: nothing of what is run here is made of it.
#include <ucontext.h>

#include <algorithm>
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

int current;
long progress;
ucontext_t scheduler;
std::vector<ucontext_t> contexts;
std::vector<char> done;
Barrier team, warps[32];
// Of some lanes of a warp: the others may wait at the warp's own.
Barrier parts[32];
unsigned char slots[1024][16];
const std::function<void(int)>* body;

void meet(Barrier& barrier, int threads) {
  const long phase = barrier.phase;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.phase;
    ++progress;
  }
  const int me = current;
  while (barrier.phase == phase) swapcontext(&contexts[me], &scheduler);
}

void lane_main() {
  const int me = current;
  (*body)(me);
  done[me] = 1;
  ++progress;
  swapcontext(&contexts[me], &scheduler);
}

// Whether every lane came to its end.
bool run_lanes(int threads, int seed, const std::function<void(int)>& each) {
  std::mt19937 random(seed);
  std::vector<std::vector<char>> stacks(threads, std::vector<char>(1 << 16));
  contexts.assign(threads, {});
  done.assign(threads, 0);
  team = {};
  std::fill(std::begin(warps), std::end(warps), Barrier{});
  std::fill(std::begin(parts), std::end(parts), Barrier{});
  body = &each;
  for (int lane = 0; lane < threads; ++lane) {
    getcontext(&contexts[lane]);
    contexts[lane].uc_stack.ss_sp = stacks[lane].data();
    contexts[lane].uc_stack.ss_size = stacks[lane].size();
    makecontext(&contexts[lane], lane_main, 0);
  }
  std::vector<int> order(threads);
  std::iota(order.begin(), order.end(), 0);
  // Some warps, or some lanes, fall behind until nothing goes on without them; then others do.
  unsigned slow_warps = random(), slow_lanes = 0;
  for (int stuck = 0; stuck <= MOST_STUCK;) {
    const long before = progress;
    std::shuffle(order.begin(), order.end(), random);
    for (const int lane : order) {
      if (done[lane] || slow_warps >> lane / 32 & 1 || slow_lanes >> lane % 32 & 1) continue;
      current = lane;
      swapcontext(&scheduler, &contexts[lane]);
    }
    if (before != progress) {
      stuck = 0;
      continue;
    }
    // In the end all run: what does not go on then is never done.
    const bool all = ++stuck == MOST_STUCK;
    slow_warps = all ? 0 : random();
    slow_lanes = all || random() % 2 ? 0 : random() & random();
  }
  return std::count(done.begin(), done.end(), 1) == threads;
}

// What every lane of a mask gives, in every lane of it.
template <typename T>
void shared_values(unsigned mask, T mine, T (&all)[32]) {
  const int warp = current / 32, count = __builtin_popcount(mask);
  Barrier& barrier = count == 32 ? warps[warp] : parts[warp];
  std::memcpy(slots[current], &mine, sizeof mine);
  meet(barrier, count);
  for (int lane = 0; lane < 32; ++lane) {
    std::memcpy(&all[lane], slots[warp * 32 + lane], sizeof mine);
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
#define __forceinline__ inline
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

int min(int a, int b) { return std::min(a, b); }
int max(int a, int b) { return std::max(a, b); }

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

struct Thread {
  struct Number {
    operator unsigned() const { return unsigned(current); }
  } x;
} threadIdx;

void lane_team_sync(int, int threads) { meet(team, threads); }

bool lane_team_any(bool said, int, int threads) {
  static bool any[2];
  // Two in turns, so that the next question does not meet this one's answer.
  bool& here = any[team.phase / 2 % 2];
  if (said) here = true;
  meet(team, threads);
  const bool found = here;
  meet(team, threads);
  here = false;
  return found;
}

#define asm
#define volatile(...)
#include "lanes.h"
#undef asm
#undef volatile

namespace {

// Memory full of what was there before, with an end that nobody may write to.
struct Scratch {
  static constexpr unsigned char OLD = 0x5a;
  size_t size;
  std::vector<unsigned char> bytes;
  explicit Scratch(size_t size) : size(size), bytes(size + 256, OLD) {}
  void* start() { return bytes.data(); }
  bool kept() const {
    return std::all_of(bytes.begin() + size, bytes.end(), [](unsigned char b) { return b == OLD; });
  }
};

template <int E>
void collect(int parts, double* re, double* im, const int* target, void* scratch, int lane, int n);

#define COLLECT(E)                                                                           \
  template <>                                                                                \
  void collect<E>(int parts, double* re, double* im, const int* target, void* scratch,       \
                  int lane, int n) {                                                         \
    if (parts == 2) {                                                                        \
      lane_collect_##E(re, im, target, scratch, lane, n);                                    \
    } else {                                                                                 \
      lane_collect_##E(re, target, scratch, lane, n);                                        \
    }                                                                                        \
  }

COLLECT(1)
COLLECT(2)
COLLECT(3)
COLLECT(4)
COLLECT(8)

template <int E>
bool collected(int parts, int n, int seed, int bytes, const int* map, const double* values,
               double* results) {
  Scratch scratch(bytes);
  const bool ended = run_lanes(32, seed, [&](int lane) {
    double re[E], im[E];
    int target[E];
    // Twice, with the second's values twice the first's: scratch is used again.
    for (int time = 1; time <= 2; ++time) {
      for (int e = 0; e < E; ++e) {
        const int j = std::min(e * 32 + lane, n - 1);
        target[e] = map[j];
        re[e] = time * values[j];
        im[e] = time * values[n + j];
      }
      collect<E>(parts, re, im, target, scratch.start(), lane, n);
    }
    // Lanes beyond the last element repeat it.
    for (int e = 0; e < E; ++e) {
      results[e * 32 + lane] = re[e];
      results[E * 32 + e * 32 + lane] = im[e];
    }
  });
  return ended && scratch.kept();
}

}  // namespace

// All of them: 1 if every lane came to its end and no scratch was written beyond its end.

// Scatter-add by any map, E elements a lane of one warp.
extern "C" int collect_elements(int elements, int parts, int n, int seed, int bytes, const int* map,
                                const double* values, double* results) {
  switch (elements) {
    case 1: return collected<1>(parts, n, seed, bytes, map, values, results);
    case 2: return collected<2>(parts, n, seed, bytes, map, values, results);
    case 3: return collected<3>(parts, n, seed, bytes, map, values, results);
    case 4: return collected<4>(parts, n, seed, bytes, map, values, results);
    case 8: return collected<8>(parts, n, seed, bytes, map, values, results);
  }
  return 0;
}

// One element a lane of several warps.
extern "C" int collect_team(int threads, int parts, int n, int seed, int bytes, const int* map,
                            const double* values, double* results) {
  Scratch scratch(bytes);
  const bool ended = run_lanes(threads, seed, [&](int lane) {
    const int j = std::min(lane, n - 1);
    double re = 0, im = 0;
    for (int time = 1; time <= 2; ++time) {
      re = time * values[j];
      im = time * values[n + j];
      if (parts == 2) {
        lane_collect_team(&re, &im, map + j, scratch.start(), lane, n, 1, threads);
      } else {
        lane_collect_team(&re, map + j, scratch.start(), lane, n, 1, threads);
      }
    }
    results[lane] = re;
    results[threads + lane] = im;
  });
  return ended && scratch.kept();
}

// The same by a map that is sorted first.
extern "C" int sum_sorted(int threads, int parts, int n, int seed, int sorting_bytes, int bytes,
                          const int* map, const double* values, double* results) {
  Scratch sorting(sorting_bytes), scratch(bytes);
  const bool ended = run_lanes(threads, seed, [&](int lane) {
    const int j = std::min(lane, n - 1);
    double re = 0, im = 0;
    for (int time = 1; time <= 2; ++time) {
      int order, last;
      lane_sort(&order, &last, map[j], sorting.start(), lane, n, 1, threads);
      re = time * values[j];
      im = time * values[n + j];
      if (parts == 2) {
        lane_sum_sorted(&re, &im, order, last, scratch.start(), lane, n, 1, threads);
      } else {
        lane_sum_sorted(&re, order, last, scratch.start(), lane, n, 1, threads);
      }
    }
    results[lane] = re;
    results[threads + lane] = im;
  });
  return ended && sorting.kept() && scratch.kept();
}

// The same by a map of a table, prepared by one warp; from registers or from shared memory.
extern "C" int fan_in(int registers, int n, int seed, const int* map, const double* values,
                      double* results) {
  std::vector<unsigned char> table(map, map + n);
  Scratch fan(16 * n), counts(4 * n);
  // A zero stands behind the last element.
  std::vector<LaneComplex<double>> shared(n + 1, LaneComplex<double>{});
  for (int j = 0; j < n; ++j) shared[j] = {values[j], values[n + j]};
  int kind = -1;
  const bool ended = run_lanes(32, seed, [&](int lane) {
    unsigned* words = static_cast<unsigned*>(fan.start());
    int* count = static_cast<int*>(counts.start());
    if (registers) {
      lane_prepare_registers(words, &kind, count, table.data(), lane, n);
    } else {
      lane_prepare_shared(words, &kind, count, table.data(), lane, n);
    }
    for (int first = 0; first < n; first += 32) {
      const int j = std::min(first + lane, n - 1);
      double re, im;
      const unsigned low = words[2 * j], high = words[2 * j + 1];
      const unsigned* more = words + 2 * n + 2 * j;
      if (registers) {
        lane_fan_in_registers(&re, &im, values[j], values[n + j], low, high, kind, more,
                              table.data(), j, n);
      } else {
        lane_fan_in_shared(&re, &im, &shared[0].re, low, high,
                           kind, more, table.data(), j, n);
      }
      results[j] = re;
      results[n + j] = im;
    }
  });
  return ended && fan.kept() && counts.kept();
}

// Sums over the lanes: of each token alone, and of all tokens together, twice: then of
// twice the values. `values` is [tokens, threads], `together` [2, tokens, warps].
extern "C" int sums(int threads, int tokens, int seed, const double* values, double* alone,
                    double* together) {
  const int warps = threads / 32;
  Scratch parts(8 * warps), scratch(8 * warps * tokens);
  double* totals[] = {together, together + tokens * warps};
  const bool ended = run_lanes(threads, seed, [&](int lane) {
    std::vector<double> waiting(32 - __clz(tokens), -1.0);
    for (int u = 0; u < tokens; ++u) {
      const double value = values[u * threads + lane];
      alone[u * threads + lane] =
          threads == 32 ? lane_sum(value)
                        : lane_team_sum(value, static_cast<double*>(parts.start()), lane, 1, threads);
      lane_merge(waiting.data(), value, u);
    }
    const int token = lane_merged_token(lane % 32, tokens);
    // Twice, the second time twice as much: scratch is used again.
    for (int time = 1; time <= 2; ++time) {
      double sum = time * lane_merged(waiting.data(), tokens);
      if (threads > 32) {
        sum = lane_team_merged(sum, static_cast<double*>(scratch.start()), lane, token, tokens, 1,
                               threads);
      }
      totals[time - 1][token * warps + lane / 32] = sum;
    }
  });
  return ended && parts.kept() && scratch.kept();
}
