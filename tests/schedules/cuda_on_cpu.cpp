// CUDA on a CPU: each thread is a coroutine, and what CUDA has for the lanes of a warp, for a block and
// for teams of warps is made of barriers. Between barriers threads run one after the other, in an
// order that a seed draws anew each time, and some fall behind, so a barrier that is missing shows as
// a wrong result for some seed.
//
// Compiled once; a kernel is compiled with cuda_on_cpu.h alone.
#include "cuda_on_cpu.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <numeric>
#include <random>
#include <vector>

int current, threads_of_block;
long progress;
bool broken;

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

jmp_buf scheduler;
struct Place {
  jmp_buf at;
};
std::vector<ucontext_t> starts;
std::vector<Place> places;
std::vector<char> started, done;
std::vector<Barrier> warps, parts, named, clusters;
int blocks_of_cluster;
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
void (*body)(void*);
void* handed;

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

Barrier& barrier_of_block(int barrier) {
  return named[current / threads_of_block * BARRIERS + barrier];
}

void thread_main() {
  body(handed);
  done[current] = 1;
  ++progress;
  yield();
}

// Memory of which a thread takes as much as it touches.
struct Stacks {
  size_t size;
  char* at;
  explicit Stacks(int threads) : size(threads * STACK) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* found = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    at = found == MAP_FAILED ? nullptr : static_cast<char*>(found);
  }
  ~Stacks() {
    if (at) munmap(at, size);
  }
};

}  // namespace

// Signals' masks are not kept, which swapcontext would: a system call each time.
void yield() {
  if (!_setjmp(places[current].at)) _longjmp(scheduler, 1);
}

bool run_threads(int blocks, int cluster, int threads, size_t pool, int seed, void (*each)(void*),
                 void* with) {
  const int all = blocks * threads;
  if (blocks % cluster) return false;
  std::mt19937 random(seed);
  const Stacks stacks(all);
  if (!stacks.at) return false;
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
  blocks_of_cluster = cluster;
  clusters.assign(blocks / cluster, {});
  for (auto& turn : said) turn.assign(blocks * BARRIERS, 0);
  copies.assign(all, std::vector<std::vector<Copy>>(1));
  pools.assign(blocks, std::vector<unsigned char>(pool, 0x5a));
  body = each;
  handed = with;
  for (int thread = 0; thread < all; ++thread) {
    getcontext(&starts[thread]);
    starts[thread].uc_stack.ss_sp = stacks.at + thread * STACK;
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

void meet_warp() { meet(warps[current / 32], 32); }
void meet_block() { meet(barrier_of_block(0), threads_of_block); }
void meet_cluster() {
  const int threads = blocks_of_cluster * threads_of_block;
  meet(clusters[current / threads], threads);
}
void meet_at(int barrier, int threads) { meet(barrier_of_block(barrier), threads); }

void share(unsigned mask, const void* mine, void* all, size_t size) {
  const int warp = current / 32, count = __builtin_popcount(mask);
  Barrier& barrier = count == 32 ? warps[warp] : parts[warp];
  std::memcpy(slots[current].data(), mine, size);
  meet(barrier, count);
  for (int lane = 0; lane < 32; ++lane) {
    std::memcpy(static_cast<char*>(all) + lane * size, slots[warp * 32 + lane].data(), size);
  }
  meet(barrier, count);
}

bool any_at(bool says, int barrier, int threads) {
  Barrier& team = barrier_of_block(barrier);
  char& here = said[team.phase / 2 % 2][&team - named.data()];
  if (says) here = 1;
  meet(team, threads);
  const bool found = here;
  meet(team, threads);
  here = 0;
  return found;
}

unsigned char* shared_memory() { return pools[current / threads_of_block].data(); }

void* across(void* place, int block) {
  if (block < 0 || block >= blocks_of_cluster) return nullptr;
  const int mine = current / threads_of_block, there = mine - mine % blocks_of_cluster + block;
  // A block that has ended has no memory any more.
  if (done[there * threads_of_block]) return nullptr;
  return pools[there].data() + (static_cast<unsigned char*>(place) - pools[mine].data());
}

bool may_hold(const void* place, size_t size) {
  const std::vector<unsigned char>& pool = pools[current / threads_of_block];
  const unsigned char* at = static_cast<const unsigned char*>(place);
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

void end_group() { copies[current].emplace_back(); }

void arrive_but(size_t groups) {
  std::vector<std::vector<Copy>>& mine = copies[current];
  for (; mine.size() > groups + 1; mine.erase(mine.begin())) {
    for (const Copy& copy : mine.front()) std::memcpy(copy.to, copy.from, copy.size);
  }
}
