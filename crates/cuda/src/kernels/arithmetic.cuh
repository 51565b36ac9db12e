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

// e^x for the log-sum-exp of logits: `logsumexp::exp` of charlstm-int8. Every
// operation is one binary64 operation, and none is fused.
DEVICE double exp_in_order(double x) {
  const double taylor[14] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
                             1.0 / 40320.0,      1.0 / 5040.0,      1.0 / 720.0,      1.0 / 120.0,     1.0 / 24.0,
                             1.0 / 6.0,          1.0 / 2.0,         1.0,              1.0};
  const double round_to_exponent = 6755399441055744.0 + 1023.0;
  double biased = __dadd_rn(__dmul_rn(x, 1.44269504088896340736), round_to_exponent);
  double n = __dsub_rn(biased, round_to_exponent);
  double high = __longlong_as_double(0x3FE62E42FEE00000ll), low = __longlong_as_double(0x3DEA39EF35793C76ll);
  double r = __dsub_rn(__dsub_rn(x, __dmul_rn(n, high)), __dmul_rn(n, low));
  double value = taylor[0];
#pragma unroll
  for (int i = 1; i < 14; i++) value = __dadd_rn(__dmul_rn(value, r), taylor[i]);
  // 2^n: the biased exponent moves to where a binary64 number has it.
  double power = __longlong_as_double((long long)((u64)__double_as_longlong(biased) << 52));
  value = __dmul_rn(value, power);
  return x < -708.0 ? 0.0 : value;
}

// ln x for x from 1 to 2^53: `logsumexp::ln` of charlstm-int8.
DEVICE double ln_in_order(double x) {
  const double series_of[11] = {2.0 / 23.0, 2.0 / 21.0, 2.0 / 19.0, 2.0 / 17.0, 2.0 / 15.0, 2.0 / 13.0,
                                2.0 / 11.0, 2.0 / 9.0,  2.0 / 7.0,  2.0 / 5.0,  2.0 / 3.0};
  u64 bits = (u64)__double_as_longlong(x);
  long long k = (long long)(bits >> 52) - 1023;
  double m = __longlong_as_double((long long)((bits & 0xFFFFFFFFFFFFFull) | 0x3FF0000000000000ull));
  if (m > 1.41421356237309514547) {
    m = __dmul_rn(m, 0.5);
    k++;
  }
  double exponent = (double)k, f = __dsub_rn(m, 1.0), s = __ddiv_rn(f, __dadd_rn(m, 1.0)), z = __dmul_rn(s, s);
  double series = series_of[0];
#pragma unroll
  for (int i = 1; i < 11; i++) series = __dadd_rn(__dmul_rn(series, z), series_of[i]);
  double high = __longlong_as_double(0x3FE62E42FEE00000ll), low = __longlong_as_double(0x3DEA39EF35793C76ll);
  double tail = __dsub_rn(__dmul_rn(s, __dsub_rn(f, __dmul_rn(z, series))), __dmul_rn(exponent, low));
  return __dsub_rn(__dmul_rn(exponent, high), __dsub_rn(tail, f));
}
