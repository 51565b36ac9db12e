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

// Runs the kernel with this name; false if there is none.
EXPORT bool host_launch(const char* name, const void* arguments, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned shared_bytes) {
#define LAUNCH(KERNEL, ARGUMENTS) \
  if (!std::strcmp(name, #KERNEL)) { \
    launch(KERNEL, *static_cast<const ARGUMENTS*>(arguments), {x, y, z}, threads, shared_bytes); \
    return true; \
  }
#define LAUNCH_TILE(N) LAUNCH(layer_##N, LayerArguments) LAUNCH(output_##N, OutputArguments)
  LAUNCH_TILE(8)
  LAUNCH_TILE(16)
  LAUNCH_TILE(32)
  LAUNCH_TILE(64)
  LAUNCH_TILE(128)
  LAUNCH(copy_states, CopyArguments)
  LAUNCH(top_logits, TopArguments)
  LAUNCH(score_wave, ScoreWaveArguments)
  LAUNCH(score_logits, ScoreLogitsArguments)
#define LAUNCH_PREFILL(KERNEL) /* its blocks wait for each other */ \
  if (!std::strcmp(name, #KERNEL)) { \
    launch(KERNEL, *static_cast<const PrefillArguments*>(arguments), {x, y, z}, threads, shared_bytes, true); \
    return true; \
  }
  LAUNCH_PREFILL(prefill_8)
  LAUNCH_PREFILL(prefill_16)
  return false;
}
