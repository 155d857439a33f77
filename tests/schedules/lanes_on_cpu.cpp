// The device functions of schedules/emit/lanes on a CPU, one by one.
#include "cuda_on_cpu.h"

#include <vector>

namespace {

template <typename Each>
bool run_lanes(int threads, int seed, Each each) {
  return run_threads(
      1, 1, threads, 0, seed, [](void* with) { (*static_cast<Each*>(with))(current); }, &each);
}

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

template <int E>
bool collected_listed(int threads, int parts, int n, int seed, int bytes, const int* map,
                      const double* values, double* results) {
  Scratch scratch(bytes);
  const bool ended = run_lanes(threads, seed, [&](int lane) {
    double re[E], im[E];
    int target[E];
    for (int time = 1; time <= 2; ++time) {
      for (int e = 0; e < E; ++e) {
        const int j = std::min(e * threads + lane, n - 1);
        target[e] = map[j];
        re[e] = time * values[j];
        im[e] = time * values[n + j];
      }
      if (parts == 2) {
        lane_collect_listed<E>(re, im, target, scratch.start(), lane, n, 1, threads);
      } else {
        lane_collect_listed<E>(re, target, scratch.start(), lane, n, 1, threads);
      }
    }
    for (int e = 0; e < E; ++e) {
      results[e * threads + lane] = re[e];
      results[(E + e) * threads + lane] = im[e];
    }
  });
  return ended && scratch.kept();
}

// One to three elements a lane of several warps, by lists that are made together.
extern "C" int collect_listed(int elements, int threads, int parts, int n, int seed, int bytes,
                              const int* map, const double* values, double* results) {
  switch (elements) {
    case 1: return collected_listed<1>(threads, parts, n, seed, bytes, map, values, results);
    case 2: return collected_listed<2>(threads, parts, n, seed, bytes, map, values, results);
    case 3: return collected_listed<3>(threads, parts, n, seed, bytes, map, values, results);
  }
  return 0;
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
        lane_sum_runs(&re, &im, order, last, scratch.start(), lane, n, 1, threads);
      } else {
        lane_sum_runs(&re, order, last, scratch.start(), lane, n, 1, threads);
      }
    }
    results[lane] = re;
    results[threads + lane] = im;
  });
  return ended && sorting.kept() && scratch.kept();
}

// Sources of the target that has most.
static int most_of(const int* map, int n) {
  std::vector<int> counts(n, 0);
  for (int j = 0; j < n; ++j) ++counts[map[j]];
  return *std::max_element(counts.begin(), counts.end());
}

// The same by a map of a table, prepared by one warp; from registers or from shared memory, of a
// kind up to `few`, 1 or 2, or of any (0). Fails if the kind is not what the map's sources say.
extern "C" int fan_in(int registers, int few, int n, int seed, const int* map, const double* values,
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
      const double *of = &shared[0].re, a = values[j], b = values[n + j];
      if (few == 1 && registers) {
        lane_few_registers<1>(&re, &im, a, b, low, high, more);
      } else if (few && registers) {
        lane_few_registers<2>(&re, &im, a, b, low, high, more);
      } else if (few == 1) {
        lane_few_shared<1>(&re, &im, of, low, high, more);
      } else if (few) {
        lane_few_shared<2>(&re, &im, of, low, high, more);
      } else if (registers) {
        lane_fan_in_registers(&re, &im, a, b, lane, low, high, kind, more, table.data(), j, n);
      } else {
        lane_fan_in_shared(&re, &im, of, low, high, kind, more, table.data(), j, n);
      }
      results[j] = re;
      results[n + j] = im;
    }
  });
  const int limits[2][3] = {{4, 6, 8}, {6, 6, 14}}, most = most_of(map, n);
  bool right = true;
  for (int k = 0; k < 3; ++k) right &= (kind <= k) == (most <= limits[registers != 0][k]);
  return ended && fan.kept() && counts.kept() && right;
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

// What the functions of numbers give, in float32 and float64: sine, cosine, sigmoid of each.
extern "C" void functions(int count, const float* x, float* single, double* twice) {
  for (int i = 0; i < count; ++i) {
    const float own[] = {lane_sin(x[i]), lane_cos(x[i]), lane_sigmoid(x[i])};
    const double wide = x[i];
    const double exact[] = {lane_sin(wide), lane_cos(wide), lane_sigmoid(wide)};
    for (int f = 0; f < 3; ++f) {
      single[f * count + i] = own[f];
      twice[f * count + i] = exact[f];
    }
  }
}
