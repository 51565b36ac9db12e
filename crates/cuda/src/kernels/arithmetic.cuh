// The arithmetic of the int8 decode step, revision 1. Every operation is one
// IEEE 754 binary32 operation that rounds to nearest even; products and sums
// are fused only where `__fmaf_rn` is written. The same text compiles as C++
// on the host with a header that supplies the intrinsics.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;

#define DEVICE __device__ __forceinline__

// tanh by the rational approximation of the Eigen library (`ptanh_float`),
// odd degree 13 over even degree 6. Beyond the limit, tanh is 1 in binary32.
DEVICE float tanh_rational(float x) {
  const float limit = 7.905311f;
  x = fmaxf(fminf(x, limit), -limit);
  float square = __fmul_rn(x, x);
  float numerator = -2.7607685e-16f;
  numerator = __fmaf_rn(numerator, square, 2.000188e-13f);
  numerator = __fmaf_rn(numerator, square, -8.604672e-11f);
  numerator = __fmaf_rn(numerator, square, 5.122297e-8f);
  numerator = __fmaf_rn(numerator, square, 1.4857224e-5f);
  numerator = __fmaf_rn(numerator, square, 6.3726193e-4f);
  numerator = __fmaf_rn(numerator, square, 4.8935246e-3f);
  float denominator = 1.1982584e-6f;
  denominator = __fmaf_rn(denominator, square, 1.1853471e-4f);
  denominator = __fmaf_rn(denominator, square, 2.2684346e-3f);
  denominator = __fmaf_rn(denominator, square, 4.893525e-3f);
  return __fdiv_rn(__fmul_rn(x, numerator), denominator);
}

DEVICE float sigmoid_rational(float x) { return __fmaf_rn(tanh_rational(__fmul_rn(x, 0.5f)), 0.5f, 0.5f); }

// One product of the step: an exact integer sum, scaled, added to `begin`.
DEVICE float scaled(int sum, float scale, float begin) { return __fmaf_rn(__int2float_rn(sum), scale, begin); }

// h of one unit as it is stored: -127 to 127.
DEVICE int quantised(float h) { return __float2int_rn(__fmul_rn(h, 127.0f)); }

// The LSTM cell of one unit from its gate pre-activations in PyTorch's order
// (input, forget, candidate, output). Updates c and returns the quantised h.
DEVICE int cell(float input, float forget, float candidate, float output, float& c) {
  float i = sigmoid_rational(input);
  float f = sigmoid_rational(forget);
  float g = tanh_rational(candidate);
  float o = sigmoid_rational(output);
  float kept = __fmul_rn(f, c);
  c = __fmaf_rn(i, g, kept);
  return quantised(__fmul_rn(o, tanh_rational(c)));
}
