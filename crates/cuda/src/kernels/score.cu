// The kernels of scores: known characters of one sequence in float32, with the
// logits after each of them.
//
// Every sum is one chain of fused multiply-adds in the order of the columns,
// from its bias on, and the activations are those of arithmetic.cuh: the
// arithmetic of the CPU's float32 decode step, so the bits are the same. A
// thread computes one chain (a row of a matrix); no sum is divided.
//
// A network of L layers has 2 L - 1 products: product 2 l is that of layer l's
// recurrent weights, product 2 l - 1 that of its input weights. (Layer 0 needs
// none: its input is one-hot, and a column of its weights is in `initial`.) In
// wave w, product p processes character w - p of a chunk, so all products run
// at once, and a character costs one launch.
//
// Weights: [rows / 32][columns / 4][32 rows][4 columns]; columns are padded to
// a multiple of 64. A padded weight is -0, and a padded number of a vector is
// 0: their product is -0, which changes no sum, not even one of -0. A group of
// 32 rows of a layer is 8 units with their four gates: row 4 * unit + gate.
//
// Consecutive waves overlap. What an earlier wave has written is read past the
// cache of the multiprocessor (`__ldcg`), which may hold what was there before.

constexpr int SCORE_CHUNK = 64;    // characters of a chunk
constexpr int SCORE_COLUMNS = 64;  // columns that a thread loads at a time
constexpr int SCORE_LOADS = SCORE_COLUMNS / 4;
// Columns of the vectors that are in shared memory at a time: an even number of
// blocks of 64.
constexpr int WAVE_PIECE = 2048, LOGITS_PIECE = 512;
// Logits: characters of a warp, and warps of a block, which share their weights.
constexpr int LOGITS_CHARACTERS = 4, LOGITS_WARPS = 4;

struct ScoreWaveArguments {
  const float4* weights;  // of the products, one after the other
  const float* initial;   // [vocabulary][rows] layer 0's input and biases
  const float* biases;    // [layers - 1][rows] of layers 1 and up
  const u32* chunk;       // number of characters, 3 unused, token ids [SCORE_CHUNK]
  const float* begin;     // state before the chunk: h [layers][columns], c [layers][columns]
  float* end;             // state after it
  float* h;               // [layers][SCORE_CHUNK][columns] after each character
  float* c;               // [layers][columns]
  float* sums;            // [layers - 1][2][rows] of the input products, in turn
  int hidden;             // unpadded
  int columns;            // hidden, padded to a multiple of 64
  int layers;
  int first_product;  // of the grid
  int wave;
};

struct ScoreLogitsArguments {
  const float4* weights;  // [vocabulary padded to 32 / 32] groups of rows
  const float* biases;    // [vocabulary padded to 32]
  const u32* chunk;
  const float* h;  // of the last layer: [characters][columns]
  float* logits;   // [characters][vocabulary]
  int columns;
  int vocabulary;
};

DEVICE void load_weights(float4 (&loaded)[SCORE_LOADS], const float4* weights, int block) {
#pragma unroll
  for (int i = 0; i < SCORE_LOADS; i++) loaded[i] = weights[((size_t)block * SCORE_LOADS + i) * 32];
}

// Adds the products of one block of 64 columns: vectors are PIECE numbers apart.
template <int VECTORS, int PIECE>
DEVICE void add_products(float (&sums)[VECTORS], const float4 (&weights)[SCORE_LOADS], const float* vectors) {
#pragma unroll
  for (int i = 0; i < SCORE_LOADS; i++)
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      float4 x = *(const float4*)(vectors + v * PIECE + i * 4);
      sums[v] = __fmaf_rn(weights[i].x, x.x, sums[v]);
      sums[v] = __fmaf_rn(weights[i].y, x.y, sums[v]);
      sums[v] = __fmaf_rn(weights[i].z, x.z, sums[v]);
      sums[v] = __fmaf_rn(weights[i].w, x.w, sums[v]);
    }
}

// Adds to `sums` the products of this lane's row with the warp's vectors.
// `first`: the first block of columns of the row, already loaded. The block's
// WARPS * VECTORS vectors are `columns` apart; those from `count` on are given
// the last one's numbers.
template <int WARPS, int VECTORS, int PIECE>
DEVICE void multiply(float (&sums)[VECTORS], float4 (&first)[SCORE_LOADS], const float4* weights, const float* vectors,
                     int count, int columns) {
  SHARED_MEMORY();
  float* piece = (float*)shared;  // [WARPS * VECTORS][PIECE]
  const float* own = piece + threadIdx.x / 32 * VECTORS * PIECE;
  float4 second[SCORE_LOADS];
  int blocks = columns / SCORE_COLUMNS;
  for (int block = 0; block < blocks; block += 2) {
    int start = block * SCORE_COLUMNS;
    if (start % PIECE == 0) {
      int length = min(PIECE, columns - start) / 4;
      if (block > 0) __syncthreads();  // the piece before is not needed any more
#pragma unroll
      for (int v = 0; v < WARPS * VECTORS; v++) {
        const float4* from = (const float4*)(vectors + (size_t)min(v, count - 1) * columns + start);
        for (int i = threadIdx.x; i < length; i += 32 * WARPS) ((float4*)(piece + v * PIECE))[i] = __ldcg(from + i);
      }
      __syncthreads();
    }
    // One block of weights is on its way while the other is used.
    if (block + 1 < blocks) load_weights(second, weights, block + 1);
    add_products<VECTORS, PIECE>(sums, first, own + start % PIECE);
    if (block + 1 < blocks) {
      if (block + 2 < blocks) load_weights(first, weights, block + 2);
      add_products<VECTORS, PIECE>(sums, second, own + start % PIECE + SCORE_COLUMNS);
    }
  }
}

// A lane's number from the lane that differs from it in the bits of `mask`.
DEVICE float from_lane(float number, int mask) {
  return __uint_as_float(__shfl_xor_sync(0xffffffffu, __float_as_uint(number), mask));
}

// One block of one warp computes 32 rows of one product.
extern "C" __global__ void __launch_bounds__(32) score_wave(const ScoreWaveArguments p) {
  int lane = threadIdx.x, group = blockIdx.x, product = p.first_product + blockIdx.y;
  int layer = (product + 1) / 2, groups = (p.hidden + 7) / 8, rows = groups * 32, row = group * 32 + lane;
  bool is_input = product & 1;
  int character = p.wave - product, count = (int)p.chunk[0];
  bool active = character >= 0 && character < count;
  const float4* weights = p.weights + ((size_t)product * groups + group) * (p.columns / 4) * 32 + lane;
  float4 first[SCORE_LOADS];
  float sums[1] = {0.f};
  if (active) {  // none of this is written by an earlier wave
    load_weights(first, weights, 0);
    if (is_input)
      sums[0] = p.biases[(size_t)(layer - 1) * rows + row];
    else if (layer == 0)
      sums[0] = p.initial[(size_t)p.chunk[4 + character] * rows + row];
  }
  dependency_wait();
  dependency_release();
  if (!active) return;

  size_t h_size = (size_t)SCORE_CHUNK * p.columns;  // of a layer
  const float* vector;
  if (is_input)
    vector = p.h + (layer - 1) * h_size + (size_t)character * p.columns;
  else if (character > 0)
    vector = p.h + layer * h_size + (size_t)(character - 1) * p.columns;
  else
    vector = p.begin + (size_t)layer * p.columns;
  float* of_input = layer > 0 ? p.sums + ((size_t)(layer - 1) * 2 + (character & 1)) * rows + row : nullptr;
  if (!is_input && layer > 0) sums[0] = __ldcg(of_input);
  multiply<1, 1, WAVE_PIECE>(sums, first, weights, vector, 1, p.columns);
  if (is_input) {
    *of_input = sums[0];
    return;
  }

  // Each lane activates its own gate: a sigmoid, or tanh for the candidate.
  bool is_candidate = (lane & 3) == 2;
  float activated = tanh_rational(is_candidate ? sums[0] : __fmul_rn(sums[0], 0.5f));
  if (!is_candidate) activated = __fmaf_rn(activated, 0.5f, 0.5f);
  float forget = from_lane(activated, 1), candidate = from_lane(activated, 2), output = from_lane(activated, 3);
  int unit = row / 4;
  if ((lane & 3) != 0 || unit >= p.hidden) return;
  size_t place = (size_t)layer * p.columns + unit, c_begin = (size_t)p.layers * p.columns;
  float kept = __fmul_rn(forget, __ldcg(character > 0 ? p.c + place : p.begin + c_begin + place));
  float c = __fmaf_rn(activated, candidate, kept);
  float h = __fmul_rn(output, tanh_rational(c));
  p.c[place] = c;
  p.h[layer * h_size + (size_t)character * p.columns + unit] = h;
  if (character == count - 1) {
    p.end[place] = h;
    p.end[c_begin + place] = c;
  }
}

// The logits after each character of the chunk. A block has 32 characters of
// the vocabulary and LOGITS_WARPS * LOGITS_CHARACTERS of the chunk.
extern "C" __global__ void __launch_bounds__(32 * LOGITS_WARPS, 1) score_logits(const ScoreLogitsArguments p) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, token = blockIdx.x * 32 + lane;
  int first_character = blockIdx.y * LOGITS_WARPS * LOGITS_CHARACTERS, count = (int)p.chunk[0] - first_character;
  const float4* weights = p.weights + (size_t)blockIdx.x * (p.columns / 4) * 32 + lane;
  float4 first[SCORE_LOADS];
  load_weights(first, weights, 0);
  float sums[LOGITS_CHARACTERS];
#pragma unroll
  for (int v = 0; v < LOGITS_CHARACTERS; v++) sums[v] = p.biases[token];
  dependency_wait();
  dependency_release();
  if (count <= 0) return;
  multiply<LOGITS_WARPS, LOGITS_CHARACTERS, LOGITS_PIECE>(sums, first, weights, p.h + (size_t)first_character * p.columns,
                                                          count, p.columns);
  if (token >= p.vocabulary) return;
#pragma unroll
  for (int v = 0; v < LOGITS_CHARACTERS; v++) {
    int character = warp * LOGITS_CHARACTERS + v;
    if (character < count) p.logits[(size_t)(first_character + character) * p.vocabulary + token] = sums[v];
  }
}
