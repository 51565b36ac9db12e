// The kernel sources as a shared library for the host tests.
#include "emulation.h"

#include "../../src/kernels/arithmetic.cuh"
#include "../../src/kernels/decode.cu"
#include "../../src/kernels/score.cu"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void host_tanh(const float* x, float* y, std::size_t n) {
  for (std::size_t i = 0; i < n; i++) y[i] = tanh_rational(x[i]);
}
EXPORT void host_sigmoid(const float* x, float* y, std::size_t n) {
  for (std::size_t i = 0; i < n; i++) y[i] = sigmoid_rational(x[i]);
}
// pre: [n][4] pre-activations; c: [n], updated; h: [n], quantised.
EXPORT void host_cell(const float* pre, float* c, signed char* h, std::size_t n) {
  for (std::size_t i = 0; i < n; i++)
    h[i] = static_cast<signed char>(cell(pre[4 * i], pre[4 * i + 1], pre[4 * i + 2], pre[4 * i + 3], c[i]));
}
EXPORT void host_scaled(const int* sum, const float* scale, const float* begin, float* y, std::size_t n) {
  for (std::size_t i = 0; i < n; i++) y[i] = scaled(sum[i], scale[i], begin[i]);
}
EXPORT void host_exp(const double* x, double* y, std::size_t n) {
  for (std::size_t i = 0; i < n; i++) y[i] = exp_in_order(x[i]);
}
EXPORT void host_ln(const double* x, double* y, std::size_t n) {
  for (std::size_t i = 0; i < n; i++) y[i] = ln_in_order(x[i]);
}
EXPORT unsigned host_top_shared_bytes() { return sizeof(TopShared); }
EXPORT void host_schedule(unsigned seed) { schedule_seed = seed; }

// Copies the arguments of the kernel with this name and returns what runs it; empty if
// there is no such kernel.
inline std::function<void()> prepared(const char* name, const void* arguments, Dimensions grid, unsigned threads, unsigned shared_bytes) {
  constexpr bool TOGETHER = true;  // the blocks wait for each other
#define KERNEL(KERNEL, ARGUMENTS, ...) \
  if (!std::strcmp(name, #KERNEL)) { \
    ARGUMENTS copy = *static_cast<const ARGUMENTS*>(arguments); \
    return [=] { launch(KERNEL, copy, grid, threads, shared_bytes, ##__VA_ARGS__); }; \
  }
#define TILE(N) KERNEL(layer_##N, LayerArguments) KERNEL(output_##N, OutputArguments)
  TILE(8)
  TILE(16)
  TILE(32)
  TILE(64)
  TILE(128)
  KERNEL(copy_states, CopyArguments)
  KERNEL(top_logits, TopArguments)
  KERNEL(score_wave, ScoreWaveArguments)
  KERNEL(score_logits, ScoreLogitsArguments)
  KERNEL(prefill_8, PrefillArguments, TOGETHER)
  KERNEL(prefill_16, PrefillArguments, TOGETHER)
#undef TILE
#undef KERNEL
  (void)TOGETHER;
  return nullptr;
}

// Runs the kernel with this name; false if there is none.
EXPORT bool host_launch(const char* name, const void* arguments, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared_bytes) {
  std::function<void()> run = prepared(name, arguments, {x, y, z}, threads, shared_bytes);
  if (run) run();
  return static_cast<bool>(run);
}
