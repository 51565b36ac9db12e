// Runs CUDA kernels as ordinary C++ on one CPU thread, so that the tests can
// execute the kernel sources without a GPU.
//
// Each thread of a block is a fiber. A fiber runs until it waits for a barrier
// of its block or for the other lanes of its warp. Warps stall at random, and an
// asynchronous copy takes place either at once or only when its group is waited
// for, also at random (`schedule_seed`); shared memory starts out as 0xEE. So a
// missing wait or barrier is likely to change the results.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __CUDA_ARCH__ 900

struct uint4 { unsigned x, y, z, w; };
struct float4 { float x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct Dimensions { unsigned x = 0, y = 0, z = 0; };

// ---- arithmetic -------------------------------------------------------------
// Compiled with -ffp-contract=off, so that only fmaf fuses.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline int __float2int_rn(float a) { return static_cast<int>(std::nearbyintf(a)); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
template <class To, class From> inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline double __longlong_as_double(long long a) { return same_bits<double>(a); }
inline long long __double_as_longlong(double a) { return same_bits<long long>(a); }
inline unsigned __float_as_uint(float a) { return same_bits<unsigned>(a); }
inline float __uint_as_float(unsigned a) { return same_bits<float>(a); }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline unsigned atomicAdd(unsigned* at, unsigned by) {
  unsigned before = *at;
  *at += by;
  return before;
}
template <class T> inline T __ldcg(const T* from) { return *from; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

// ---- threads ----------------------------------------------------------------
struct Copy { void* to; const void* from; };
struct Warp {
  unsigned arrived = 0, generation = 0;
  std::uint64_t stalled_until = 0;  // in rounds of the scheduler
  unsigned words[32][6];
};
struct Block {
  unsigned threads = 0, arrived = 0, generation = 0;
  int votes = 0, vote_result = 0;
  std::vector<Warp> warps;
  std::vector<uint4> shared;
};
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Dimensions thread, block;
  Block* owner = nullptr;
  std::deque<std::vector<Copy>> groups;  // committed, oldest first
  std::vector<Copy> started;
  const unsigned* waits_for = nullptr;  // until this is no longer `waits_while`
  unsigned waits_while = 0;
  bool done = false;
};
inline ucontext_t scheduler;
inline Fiber* current = nullptr;
inline std::function<void()> body;
inline Dimensions grid_dimensions, block_dimensions;
inline unsigned schedule_seed = 1;
inline unsigned random_number() {
  schedule_seed = schedule_seed * 1664525u + 1013904223u;
  return schedule_seed >> 8;
}

#define threadIdx (current->thread)
#define blockIdx (current->block)
#define gridDim (grid_dimensions)
#define blockDim (block_dimensions)

inline void yield() { swapcontext(&current->context, &scheduler); }
template <class T> inline void barrier(T& at, unsigned count) {
  unsigned generation = at.generation;
  if (++at.arrived == count) {
    at.arrived = 0;
    at.generation++;
  }
  if (at.generation != generation) return;
  current->waits_for = &at.generation;
  current->waits_while = generation;
  yield();
  current->waits_for = nullptr;
}
inline void __syncthreads() { barrier(*current->owner, current->owner->threads); }
inline int __syncthreads_or(int vote) {
  Block& b = *current->owner;
  b.votes |= vote;
  if (b.arrived + 1 == b.threads) {
    b.vote_result = b.votes;
    b.votes = 0;
  }
  __syncthreads();
  int result = b.vote_result;
  __syncthreads();
  return result;
}
inline Warp& warp() { return current->owner->warps[threadIdx.x / 32]; }
inline void warp_barrier() { barrier(warp(), 32); }
inline void __syncwarp() { warp_barrier(); }
inline unsigned __shfl_xor_sync(unsigned, unsigned value, int mask) {
  unsigned lane = threadIdx.x % 32;
  warp().words[lane][0] = value;
  warp_barrier();
  unsigned result = warp().words[lane ^ static_cast<unsigned>(mask)][0];
  warp_barrier();
  return result;
}
inline unsigned __shfl_up_sync(unsigned, unsigned value, unsigned distance) {
  unsigned lane = threadIdx.x % 32;
  warp().words[lane][0] = value;
  warp_barrier();
  unsigned result = warp().words[lane < distance ? lane : lane - distance][0];
  warp_barrier();
  return result;
}

// ---- instructions (device.cuh) ----------------------------------------------
inline void copy_async(void* to, const void* from) {
  if (reinterpret_cast<std::uintptr_t>(to) % 16 || reinterpret_cast<std::uintptr_t>(from) % 16) {
    std::fprintf(stderr, "misaligned asynchronous copy\n");
    std::abort();
  }
  if (random_number() & 1)
    std::memcpy(to, from, 16);
  else
    current->started.push_back({to, from});
}
inline void copy_commit() {
  current->groups.push_back(std::move(current->started));
  current->started.clear();
}
template <int PENDING> inline void copy_wait() {
  while (current->groups.size() > PENDING) {
    for (const Copy& c : current->groups.front()) std::memcpy(c.to, c.from, 16);
    current->groups.pop_front();
  }
}
inline void dependency_wait() {}
inline void dependency_release() {}

// The operand layout of mma.m16n8k32 for 8-bit integers, as the PTX manual
// defines it.
inline void mma_s8(int* sums, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  unsigned lane = threadIdx.x % 32;
  unsigned in[6] = {a0, a1, a2, a3, b0, b1};
  std::memcpy(warp().words[lane], in, sizeof in);
  warp_barrier();
  auto byte = [](unsigned word, int i) { return static_cast<int>(static_cast<signed char>(word >> (8 * i))); };
  for (int i = 0; i < 4; i++) {
    int row = static_cast<int>(lane / 4) + (i / 2) * 8, column = static_cast<int>(lane % 4) * 2 + i % 2;
    for (int k = 0; k < 32; k++) {
      int a = byte(warp().words[row % 8 * 4 + k % 16 / 4][row / 8 + 2 * (k / 16)], k % 4);
      int b = byte(warp().words[column * 4 + k % 16 / 4][4 + k / 16], k % 4);
      sums[i] += a * b;
    }
  }
  warp_barrier();
}
inline void exchange_store(unsigned long long* to, unsigned long long value) { *to = value; }
inline void exchange_load(const unsigned long long* from, unsigned long long& first, unsigned long long& second) {
  first = from[0];
  second = from[1];
}
inline void spin_pause() { yield(); }
inline void fail() {
  std::fprintf(stderr, "a kernel failed\n");
  std::abort();
}
#define SHARED_MEMORY() uint4* shared = current->owner->shared.data()

// ---- launch -----------------------------------------------------------------
inline void fiber_main() {
  body();
  if (!current->started.empty()) {
    std::fprintf(stderr, "a thread ended with uncommitted copies\n");
    std::abort();
  }
  current->done = true;
  yield();
}

inline std::unique_ptr<Fiber> make_fiber(Block& block, Dimensions place, unsigned thread, std::size_t stack_bytes) {
  auto fiber = std::make_unique<Fiber>();
  fiber->stack.reset(new char[stack_bytes]);
  fiber->owner = &block;
  fiber->thread = {thread, 0, 0};
  fiber->block = place;
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = fiber->stack.get();
  fiber->context.uc_stack.ss_size = stack_bytes;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, fiber_main, 0);
  return fiber;
}

// Runs the blocks `first` to `first + count - 1` of a grid at the same time.
inline void run_blocks(unsigned first, unsigned count, unsigned threads, unsigned shared_bytes, std::size_t stack_bytes) {
  std::deque<Block> blocks(count);
  std::vector<std::unique_ptr<Fiber>> fibers;
  for (unsigned b = 0; b < count; b++) {
    Block& block = blocks[b];
    block.threads = threads;
    block.warps.resize(threads / 32);
    block.shared.resize((shared_bytes + 15) / 16);
    std::memset(block.shared.data(), 0xEE, block.shared.size() * 16);
    unsigned index = first + b;
    Dimensions place = {index % grid_dimensions.x, index / grid_dimensions.x % grid_dimensions.y,
                        index / grid_dimensions.x / grid_dimensions.y};
    for (unsigned t = 0; t < threads; t++) fibers.push_back(make_fiber(block, place, t, stack_bytes));
  }
  std::size_t left = fibers.size();
  for (std::uint64_t round = 0; left; round++) {
    bool any = false, stalled = false;
    for (auto& pointer : fibers) {
      Fiber& fiber = *pointer;
      if (fiber.done || (fiber.waits_for && *fiber.waits_for == fiber.waits_while)) continue;
      Warp& warp = fiber.owner->warps[fiber.thread.x / 32];
      if (fiber.thread.x % 32 == 0 && warp.stalled_until <= round && random_number() % 8 == 0)
        warp.stalled_until = round + random_number() % 64;
      if (warp.stalled_until > round) {
        stalled = true;
        continue;
      }
      any = true;
      current = &fiber;
      swapcontext(&scheduler, &fiber.context);
      if (fiber.done) left--;
    }
    if (left && !any && !stalled) {
      std::fprintf(stderr, "the threads of a block wait for each other forever\n");
      std::abort();
    }
  }
  current = nullptr;
}

template <class Kernel, class Arguments>
inline void launch(Kernel kernel, const Arguments& arguments, Dimensions grid, unsigned threads, unsigned shared_bytes,
                   bool together = false, std::size_t stack_bytes = 32 * 1024) {
  grid_dimensions = grid;
  block_dimensions = {threads, 1, 1};
  body = [&] { kernel(arguments); };
  unsigned blocks = grid.x * grid.y * grid.z;
  if (together)
    run_blocks(0, blocks, threads, shared_bytes, stack_bytes);
  else
    for (unsigned b = 0; b < blocks; b++) run_blocks(b, 1, threads, shared_bytes, stack_bytes);
}
