// The kernels of the decode step: one for the LSTM layers and one for the
// linear output layer, each for several tile sizes. They hold no size of a
// model: one compiled module serves every model.
//
// A block multiplies BM = 32 * WM rows of a weight matrix with BN = 8 * WN * NT
// rows of the batch, in one pass over the hidden units, 64 at a time. Weights
// are stored as fragments of mma.m16n8k32, in blocks of 64 columns, so that a
// thread copies and loads 16 bytes at a time and an h is stored as plain bytes:
// within a block, thread q = lane % 4 holds columns 16 q to 16 q + 15. Any
// order of the columns gives the same exact integer sum.
//
// Fragment order: [groups of 32 rows][hidden / 64][2 tiles of 16 rows]
// [2 halves of the 16 bytes][32 lanes][16 bytes]. A group of an LSTM matrix is
// the four gates of 8 units: rows 8 * gate + unit.
//
// Session state. A slot has two state rows, row = 2 * slot + parity: h of all
// layers as int8 (`layers * hidden` bytes), then c of all layers as float32. A
// step reads one of them and writes the other, so no block overwrites what
// another one still reads, and a step that failed can be repeated.
//
// The table of a launch: [0] number of batch rows in use, [1..3] unused, then
// per batch row `characters << 24 | state row`, then [characters][bucket] token
// ids. Batch rows beyond the number in use are neither read nor written.

struct LayerArguments {
  const uint4* hidden_weights;  // fragments [layers]
  const uint4* input_weights;   // fragments [layers - 1], of layers 1 and up
  const float4* hidden_scales;  // [layers][hidden] gates i f g o
  const float4* input_scales;   // [layers - 1][hidden]
  const float4* biases;         // [layers - 1][hidden] bias_ih + bias_hh
  const float4* initial;        // [vocabulary][hidden] layer 0's input and biases
  unsigned char* states;
  const u32* table;
  int hidden;  // padded to a multiple of 64
  int layers;
  int bucket;  // batch rows that the table has room for
  int first_layer;
  int wave;   // layer l processes character wave - l of each row's characters
  int early;  // 1: no earlier kernel of this graph wrote h of this layer
  int history_rows;
  unsigned char* history;  // null, or h of the last layer: [batch row][history_rows][hidden] after each character
};

// Known characters in one launch. `first_layer`, `wave` and `early` of `layer`
// are not used.
struct PrefillArguments {
  LayerArguments layer;
  u64* exchange;   // [tiles of 8 rows][2][layers][8][hidden / 4]
  int characters;  // of the longest row
  u32 base;        // sequence number before the first wave's
};

struct OutputArguments {
  const uint4* weights;  // fragments [vocabulary padded to 128 / 32]
  const float* scales;   // [vocabulary padded to 128]
  const float* biases;
  const unsigned char* rows;  // h of the last layer, `row_bytes` apart
  u64 row_bytes;
  const u32* table;
  float* logits;  // [batch rows][vocabulary]
  int hidden;
  int vocabulary;
};

struct TopArguments {
  const float* logits;  // [rows][vocabulary]
  const u32* table;
  double* log_sums;     // [rows]
  u32* ids;             // [rows][TOP]
  float* top;           // [rows][TOP]
  int vocabulary;
};

struct CopyArguments {
  const unsigned char* states;
  const u32* rows;     // state row of each block
  unsigned char* out;  // [blocks][bytes]
  int bytes;           // of a state row, a multiple of 16
};

// WM x WN warps; a warp multiplies 32 weight rows with NT * 8 batch rows.
// STAGES blocks of 64 columns are in shared memory at once.
template <int WM_, int WN_, int NT_, int STAGES_> struct Tile {
  static constexpr int WM = WM_, WN = WN_, NT = NT_, STAGES = STAGES_;
  static constexpr int THREADS = 32 * WM * WN, BM = 32 * WM, BN = 8 * WN * NT;
  // In units of 16 bytes.
  static constexpr int WEIGHTS = WM * 128, ROWS = BN * 4, STAGE = WEIGHTS + ROWS, RING = STAGES * STAGE;
  static constexpr int ROW_COPIES = (ROWS + THREADS - 1) / THREADS;
};

DEVICE size_t state_bytes(int layers, int hidden) { return (size_t)layers * hidden * 5; }

template <class T> DEVICE void copy_weights(uint4* stage, const uint4* weights, int column_block, int column_blocks) {
#pragma unroll
  for (int i = threadIdx.x; i < T::WEIGHTS; i += T::THREADS)
    copy_async(stage + i, weights + ((size_t)(i >> 7) * column_blocks + column_block) * 128 + (i & 127));
}

// rows[j]: h of the batch row whose 16 bytes this thread copies in its turn j.
template <class T> DEVICE void copy_rows(uint4* stage, const uint4* const (&rows)[T::ROW_COPIES], int column_block) {
#pragma unroll
  for (int j = 0; j < T::ROW_COPIES; j++) {
    int i = threadIdx.x + j * T::THREADS;
    if (i < T::ROWS) copy_async(stage + T::WEIGHTS + i, rows[j] + column_block * 4);
  }
}

// CHAINS sums of the same numbers, to be added: a chain of dependent
// instructions is as long as the columns divided by 32 * CHAINS.
template <class T> struct Sums {
  static constexpr int CHAINS = T::NT == 1 ? 2 : 1;
  int parts[CHAINS][2][T::NT][4];

  DEVICE void clear() {
#pragma unroll
    for (int chain = 0; chain < CHAINS; chain++)
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < T::NT; n++)
#pragma unroll
          for (int k = 0; k < 4; k++) parts[chain][m][n][k] = 0;
  }
  DEVICE int total(int m, int n, int k) const {
    return CHAINS == 1 ? parts[0][m][n][k] : parts[0][m][n][k] + parts[CHAINS - 1][m][n][k];
  }
  // Adds the product of one block of 64 columns: this lane's part of the
  // weights and of the rows.
  DEVICE void add(const uint4* a, const uint4* b) {
    uint4 a00 = a[0], a01 = a[32], a10 = a[64], a11 = a[96];
#pragma unroll
    for (int n = 0; n < T::NT; n++) {
      uint4 x = b[n * 32];
      mma_s8(parts[0][0][n], a00.x, a00.y, a00.z, a00.w, x.x, x.y);
      mma_s8(parts[0][1][n], a10.x, a10.y, a10.z, a10.w, x.x, x.y);
      mma_s8(parts[CHAINS - 1][0][n], a01.x, a01.y, a01.z, a01.w, x.z, x.w);
      mma_s8(parts[CHAINS - 1][1][n], a11.x, a11.y, a11.z, a11.w, x.z, x.w);
    }
  }
  // The four gates of this thread's unit and batch row n, e.
  DEVICE float4 gates(int n, int e, float4 scale, float4 begin) const {
    return make_float4(scaled(total(0, n, e), scale.x, begin.x), scaled(total(0, n, 2 + e), scale.y, begin.y),
                       scaled(total(1, n, e), scale.z, begin.z), scaled(total(1, n, 2 + e), scale.w, begin.w));
  }
};

// One product, or two with different rows after each other, as a pipeline of
// blocks of 64 columns.
template <class T> struct Pipeline {
  static constexpr int AHEAD = T::STAGES - 1;  // blocks that are copied in advance

  uint4* ring;
  const uint4* weights[2];             // of the two products
  const uint4* rows[2][T::ROW_COPIES];
  int column_blocks;                   // of each product
  int blocks;                          // of all products

  DEVICE void weights_of(int block) const {
    bool second = block >= column_blocks;
    copy_weights<T>(ring + block % T::STAGES * T::STAGE, second ? weights[1] : weights[0],
                    second ? block - column_blocks : block, column_blocks);
  }
  DEVICE void rows_of(int block) const {
    uint4* stage = ring + block % T::STAGES * T::STAGE;
    if (block >= column_blocks)
      copy_rows<T>(stage, rows[1], block - column_blocks);
    else
      copy_rows<T>(stage, rows[0], block);
  }
  // Starts the first copies. `second`: the rows of the second product too.
  DEVICE void start_weights() const {
    for (int block = 0; block < AHEAD; block++)
      if (block < blocks) weights_of(block);
  }
  DEVICE void start_rows(bool second) const {
    for (int block = 0; block < AHEAD; block++) {
      if (block < blocks && (second || block < column_blocks)) rows_of(block);
      copy_commit();
    }
  }
  // Starts the copies of the second product's rows that `run` left out.
  DEVICE void start_second_rows() const {
    for (int block = column_blocks; block < column_blocks + AHEAD; block++) {
      if (block < blocks) rows_of(block);
      copy_commit();
    }
  }
  // sums = the product of blocks `first` to `last` - 1. `second`: the rows of
  // the second product may be copied.
  DEVICE void run(Sums<T>& sums, int first, int last, bool second, int warp_m, int warp_n, int lane) const {
    sums.clear();
    bool resident = blocks <= AHEAD;  // everything has been copied in advance
    for (int block = first; block < last; block++) {
      if (!resident) {
        copy_wait<AHEAD - 1>();
        __syncthreads();
        int next = block + AHEAD;
        if (next < blocks) {
          weights_of(next);
          if (second || next < column_blocks) rows_of(next);
        }
        copy_commit();
      } else if (block == first) {
        copy_wait<0>();
        __syncthreads();
      }
      const uint4* stage = ring + block % T::STAGES * T::STAGE;
      sums.add(stage + warp_m * 128 + lane, stage + T::WEIGHTS + warp_n * T::NT * 32 + lane);
    }
  }
};

// Pointers to the h that this thread copies: `offset` bytes into the state rows.
template <class T>
DEVICE void row_pointers(const uint4* (&rows)[T::ROW_COPIES], const u32* entries, const unsigned char* states, int parity,
                         size_t bytes, int offset) {
#pragma unroll
  for (int j = 0; j < T::ROW_COPIES; j++) {
    int i = threadIdx.x + j * T::THREADS;
    u32 row = (entries[i < T::ROWS ? i >> 2 : 0] & 0xffffffu) ^ parity;
    rows[j] = (const uint4*)(states + row * bytes + offset) + (i & 3);
  }
}

template <class T, bool FIRST> DEVICE void layer_tile(const LayerArguments& p, int layer) {
  SHARED_MEMORY();
  u32* entries = (u32*)(shared + T::RING);  // [BN] as in the table; no characters if not in use
  int* tokens = (int*)(entries + T::BN);    // [BN]
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warp_m = warp % T::WM, warp_n = warp / T::WM;
  int g = lane >> 2, q = lane & 3;
  int unit = (blockIdx.x * T::WM + warp_m) * 8 + g, first_row = blockIdx.y * T::BN;
  int character = p.wave - layer, used = (int)p.table[0];
  bool wait_first = FIRST || !p.early;

  Pipeline<T> pipeline;
  pipeline.ring = shared;
  pipeline.column_blocks = p.hidden / 64;
  pipeline.blocks = FIRST ? pipeline.column_blocks : 2 * pipeline.column_blocks;
  size_t matrix = (size_t)p.hidden * p.hidden / 4;  // in units of 16 bytes
  size_t group = (size_t)blockIdx.x * T::WM * pipeline.column_blocks * 128;
  pipeline.weights[0] = p.hidden_weights + layer * matrix + group;
  pipeline.weights[1] = FIRST ? nullptr : p.input_weights + (layer - 1) * matrix + group;

  bool active = false;
  for (int n = threadIdx.x; n < T::BN; n += T::THREADS) {
    int row = first_row + n;
    u32 entry = p.table[4 + min(row, used - 1)];
    if (row >= used) entry &= 0xffffffu;
    entries[n] = entry;
    bool in_use = character >= 0 && character < (int)(entry >> 24);
    if (FIRST) tokens[n] = in_use ? (int)p.table[4 + p.bucket + character * p.bucket + row] : 0;
    active = active || in_use;
  }
  if (!__syncthreads_or(active)) {
    dependency_wait();  // see dependency_release
    dependency_release();
    return;
  }
  pipeline.start_weights();

  int parity = character & 1;
  size_t bytes = state_bytes(p.layers, p.hidden);
  row_pointers<T>(pipeline.rows[0], entries, p.states, parity, bytes, layer * p.hidden);
  // The layer below has written its h of this character to the other row.
  if (!FIRST) row_pointers<T>(pipeline.rows[1], entries, p.states, parity ^ 1, bytes, (layer - 1) * p.hidden);

  // What the gates start from: [row][gate]. For layer 0 a row of `initial`,
  // for the others the sum with the layer's own h.
  float4 begin[T::NT][2];
  float4 scale = p.hidden_scales[(size_t)layer * p.hidden + unit];
  if (FIRST) {
#pragma unroll
    for (int n = 0; n < T::NT; n++)
#pragma unroll
      for (int e = 0; e < 2; e++)
        begin[n][e] = p.initial[(size_t)tokens[(warp_n * T::NT + n) * 8 + 2 * q + e] * p.hidden + unit];
  }
  if (wait_first) {
    dependency_wait();
    dependency_release();
  }
  pipeline.start_rows(wait_first);

  size_t c_offset = (size_t)p.layers * p.hidden + ((size_t)layer * p.hidden + unit) * 4;
  float c[T::NT][2];
#pragma unroll
  for (int n = 0; n < T::NT; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      u32 row = (entries[(warp_n * T::NT + n) * 8 + 2 * q + e] & 0xffffffu) ^ parity;
      c[n][e] = *(const float*)(p.states + row * bytes + c_offset);
    }

  Sums<T> sums;
  pipeline.run(sums, 0, pipeline.column_blocks, wait_first, warp_m, warp_n, lane);
  if (!FIRST) {
    float4 bias = p.biases[(size_t)(layer - 1) * p.hidden + unit];
#pragma unroll
    for (int n = 0; n < T::NT; n++)
#pragma unroll
      for (int e = 0; e < 2; e++) begin[n][e] = sums.gates(n, e, scale, bias);
    scale = p.input_scales[(size_t)(layer - 1) * p.hidden + unit];
    if (!wait_first) {
      dependency_wait();
      dependency_release();
      pipeline.start_second_rows();
    }
    pipeline.run(sums, pipeline.column_blocks, pipeline.blocks, true, warp_m, warp_n, lane);
  }

#pragma unroll
  for (int n = 0; n < T::NT; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      int column = (warp_n * T::NT + n) * 8 + 2 * q + e;
      u32 entry = entries[column];
      float4 gates = sums.gates(n, e, scale, begin[n][e]);
      int h = cell(gates.x, gates.y, gates.z, gates.w, c[n][e]);
      u32 word = (u32)(h & 255) << (8 * (g & 3));  // four units of a row in a word
      word |= __shfl_xor_sync(0xffffffffu, word, 4);
      word |= __shfl_xor_sync(0xffffffffu, word, 8);
      if (character < (int)(entry >> 24)) {
        unsigned char* state = p.states + ((entry & 0xffffffu) ^ parity ^ 1) * bytes;
        *(float*)(state + c_offset) = c[n][e];
        if ((g & 3) == 0) {
          *(u32*)(state + (size_t)layer * p.hidden + unit) = word;
          if (p.history && layer == p.layers - 1)
            *(u32*)(p.history + ((size_t)(first_row + column) * p.history_rows + character) * p.hidden + unit) = word;
        }
      }
    }
}

// Looks at a value this often before it gives up: tens of seconds. A block that
// never comes must not hang the device.
constexpr u32 MAX_LOOKS = 1u << 26;

// The 16 units of a row that a lane receives: a warp receives up to 8 columns of
// 64 units of a layer's row at a time.
struct Piece {
  int word, place;        // in the exchange buffer and in shared memory
  int of_layer, length;   // number of characters of the row; 0: nothing to receive
};

DEVICE Piece piece_of(int item, int items, int chunks, int layers, int columns, int words, const u32* entries, int lane) {
  Piece piece = {0, 0, 0, 0};
  int column = item % chunks * 8 + lane / 4;
  if (item >= items || column >= columns) return piece;
  int row = item / (layers * chunks);  // rows in use come first, spread over the warps
  piece.of_layer = item / chunks % layers;
  piece.length = (int)(entries[row] >> 24);
  piece.word = (piece.of_layer * 8 + row) * words + column * 16 + lane % 4 * 4;
  piece.place = ((piece.of_layer * columns + column) * 8 + row) * 4 + lane % 4;
  return piece;
}

// Waits until the words of four pieces have arrived, if they are due in this
// wave, and puts them in shared memory.
DEVICE void receive(uint4* h, const u64* from, u32 sequence, int wave, const Piece (&pieces)[4]) {
  bool pending[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int character = wave - 1 - pieces[j].of_layer;
    pending[j] = character >= 0 && character < pieces[j].length;
  }
  u32 looks = 0;
  while (pending[0] || pending[1] || pending[2] || pending[3]) {
    u64 value[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (pending[j]) {
        exchange_load(from + pieces[j].word, value[j][0], value[j][1]);
        exchange_load(from + pieces[j].word + 2, value[j][2], value[j][3]);
      }
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (pending[j] && (u32)(value[j][0] >> 32) == sequence && (u32)(value[j][1] >> 32) == sequence &&
          (u32)(value[j][2] >> 32) == sequence && (u32)(value[j][3] >> 32) == sequence) {
        h[pieces[j].place] = make_uint4((u32)value[j][0], (u32)value[j][1], (u32)value[j][2], (u32)value[j][3]);
        pending[j] = false;
      }
    if (++looks == MAX_LOOKS) fail();
    spin_pause();
  }
}

// Processes all characters of a tile of 8 batch rows in all layers, for 8 * WM
// units of each layer, while the other blocks process the other units. All
// blocks of the grid must run at the same time. One warp has 8 units of one
// layer. Weights stay in shared memory and c in registers.
//
// In wave w, layer l processes character w - l, so one exchange of h between
// the blocks per wave is enough. A word of 4 units is written together with a
// sequence number; who needs it looks until it has the number of the wave. Two
// buffers, used in turn, are enough: a block writes in wave w only after it has
// received the words of wave w - 1 from every block, which thus have received
// those of wave w - 2, the ones that are overwritten.
template <int WM> DEVICE void prefill_rows(const PrefillArguments& arguments) {
  using T = Tile<WM, 1, 1, 2>;
  const LayerArguments& p = arguments.layer;
  SHARED_MEMORY();
  int columns = p.hidden / 64, layers = p.layers, words = p.hidden / 4;
  int part = WM * columns * 128;                                    // of a matrix, in units of 16 bytes
  int h_size = layers * columns * 32;                               // of all layers
  uint4* h = shared + (2 * layers - 1) * part;                      // [2][layers][columns][8 rows][4]
  u32* entries = (u32*)(h + 2 * h_size);                            // [8]
  int thread = threadIdx.x, threads = blockDim.x, lane = thread & 31, warp = thread >> 5, warps = threads >> 5;
  int g = lane >> 2, q = lane & 3, layer = warp / WM, warp_m = warp % WM;
  int unit = (blockIdx.x * WM + warp_m) * 8 + g, first_row = blockIdx.y * 8, used = (int)p.table[0];
  size_t matrix = (size_t)p.hidden * p.hidden / 4, bytes = state_bytes(layers, p.hidden);
  for (int m = 0; m < 2 * layers - 1; m++) {  // hidden weights of all layers, then input weights
    const uint4* from = m < layers ? p.hidden_weights + m * matrix : p.input_weights + (m - layers) * matrix;
    for (int i = thread; i < part; i += threads) copy_async(shared + m * part + i, from + (size_t)blockIdx.x * part + i);
  }
  for (int n = thread; n < 8; n += threads) {
    u32 entry = p.table[4 + min(first_row + n, used - 1)];
    entries[n] = first_row + n < used ? entry : entry & 0xffffffu;
  }
  __syncthreads();
  // Layer l needs its first h in wave l.
  for (int i = thread; i < h_size; i += threads) {
    int at = i / 32, row = i / 4 % 8, of_layer = at / columns;
    const unsigned char* from = p.states + (entries[row] & 0xffffffu) * bytes + (size_t)at * 64 + (i & 3) * 16;
    copy_async(h + (of_layer & 1) * h_size + i, from);
  }
  copy_commit();

  size_t c_offset = (size_t)layers * p.hidden + ((size_t)layer * p.hidden + unit) * 4;
  float4 hidden_scale = p.hidden_scales[(size_t)layer * p.hidden + unit];
  float4 input_scale = hidden_scale, bias = make_float4(0.f, 0.f, 0.f, 0.f);
  if (layer > 0) {
    input_scale = p.input_scales[(size_t)(layer - 1) * p.hidden + unit];
    bias = p.biases[(size_t)(layer - 1) * p.hidden + unit];
  }
  const u32* tokens = p.table + 4 + p.bucket + first_row + 2 * q;
  float c[2];
  int length[2];
  u32 state_row[2], next_token[2] = {0, 0};
  float4 begin[2];  // in layer 0 of the next character
#pragma unroll
  for (int e = 0; e < 2; e++) {
    u32 entry = entries[2 * q + e];
    length[e] = (int)(entry >> 24);
    state_row[e] = entry & 0xffffffu;
    c[e] = *(const float*)(p.states + state_row[e] * bytes + c_offset);
    if (layer == 0) {
      begin[e] = p.initial[(size_t)(length[e] > 0 ? tokens[e] : 0) * p.hidden + unit];
      if (length[e] > 1) next_token[e] = tokens[p.bucket + e];
    }
  }
  u64* exchange = arguments.exchange + (size_t)blockIdx.y * 2 * layers * 8 * words;
  int chunks = (columns + 7) / 8, items = 8 * layers * chunks;
  Piece own[4];  // the first that this lane receives; mostly there are no more
#pragma unroll
  for (int j = 0; j < 4; j++) own[j] = piece_of(warp + j * warps, items, chunks, layers, columns, words, entries, lane);
  int last = arguments.characters + layers - 2;  // the last wave
  copy_wait<0>();
  for (int wave = 0; wave <= last; wave++) {
    uint4* now = h + (wave & 1) * h_size;
    if (wave > 0) {
      const u64* from = exchange + (size_t)((wave - 1) & 1) * layers * 8 * words;
      receive(now, from, arguments.base + wave, wave, own);
      for (int first = warp + 4 * warps; first < items; first += 4 * warps) {
        Piece more[4];
#pragma unroll
        for (int j = 0; j < 4; j++) more[j] = piece_of(first + j * warps, items, chunks, layers, columns, words, entries, lane);
        receive(now, from, arguments.base + wave, wave, more);
      }
    }
    __syncthreads();
    int character = wave - layer;
    if (character < 0 || character >= arguments.characters) continue;
    Sums<T> sums;
    sums.clear();
    const uint4* a = shared + layer * part + warp_m * columns * 128 + lane;
    const uint4* b = now + layer * columns * 32 + lane;
#pragma unroll 4
    for (int block = 0; block < columns; block++) sums.add(a + block * 128, b + block * 32);
    float4 scale = hidden_scale, add[2] = {begin[0], begin[1]};
    if (layer > 0) {
#pragma unroll
      for (int e = 0; e < 2; e++) add[e] = sums.gates(0, e, hidden_scale, bias);
      scale = input_scale;
      sums.clear();
      a = shared + (layers + layer - 1) * part + warp_m * columns * 128 + lane;
      b = now + (layer - 1) * columns * 32 + lane;
#pragma unroll 4
      for (int block = 0; block < columns; block++) sums.add(a + block * 128, b + block * 32);
    }
    u64* to = exchange + ((size_t)(wave & 1) * layers + layer) * 8 * words + unit / 4;
#pragma unroll
    for (int e = 0; e < 2; e++) {
      float4 gates = sums.gates(0, e, scale, add[e]);
      float moved = c[e];
      int new_h = cell(gates.x, gates.y, gates.z, gates.w, moved);
      u32 word = (u32)(new_h & 255) << (8 * (g & 3));
      word |= __shfl_xor_sync(0xffffffffu, word, 4);
      word |= __shfl_xor_sync(0xffffffffu, word, 8);
      if (character < length[e]) {
        c[e] = moved;
        if ((g & 3) == 0) {
          exchange_store(to + (2 * q + e) * words, (u64)(arguments.base + wave + 1) << 32 | word);
          if (p.history && layer == layers - 1)
            *(u32*)(p.history + ((size_t)(first_row + 2 * q + e) * p.history_rows + character) * p.hidden + unit) = word;
        }
        if (character == length[e] - 1) {
          unsigned char* state = p.states + (state_row[e] ^ (length[e] & 1)) * bytes;
          *(float*)(state + c_offset) = moved;
          if ((g & 3) == 0) *(u32*)(state + (size_t)layer * p.hidden + unit) = word;
        }
      }
    }
    if (layer == 0) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        begin[e] = p.initial[(size_t)next_token[e] * p.hidden + unit];
        if (character + 2 < length[e]) next_token[e] = tokens[(character + 2) * p.bucket + e];
      }
    }
  }
}

template <class T> DEVICE void layer_kernel(const LayerArguments& p) {
  int layer = p.first_layer + blockIdx.z;
  if (layer == 0)
    layer_tile<T, true>(p, 0);
  else
    layer_tile<T, false>(p, layer);
}

// Logits after a batch row's characters.
template <class T> DEVICE void output_kernel(const OutputArguments& p) {
  SHARED_MEMORY();
  constexpr int STRIDE = T::BM + 4;  // keeps the four rows of a store in different banks
  u32* entries = (u32*)(shared + T::RING);
  float* staged = (float*)shared;  // [BN][STRIDE]
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warp_m = warp % T::WM, warp_n = warp / T::WM;
  int g = lane >> 2, q = lane & 3;
  int first_output = blockIdx.x * T::BM, first_row = blockIdx.y * T::BN, used = (int)p.table[0];
  if (first_row >= used) {
    dependency_wait();
    dependency_release();
    return;
  }
  for (int n = threadIdx.x; n < T::BN; n += T::THREADS) {
    u32 entry = p.table[4 + min(first_row + n, used - 1)];
    entries[n] = (entry & 0xffffffu) ^ (entry >> 24 & 1);
  }
  __syncthreads();
  Pipeline<T> pipeline;
  pipeline.ring = shared;
  pipeline.column_blocks = pipeline.blocks = p.hidden / 64;
  pipeline.weights[0] = p.weights + (size_t)blockIdx.x * T::WM * pipeline.column_blocks * 128;
  pipeline.start_weights();
  row_pointers<T>(pipeline.rows[0], entries, p.rows, 0, p.row_bytes, 0);
  dependency_wait();
  dependency_release();
  pipeline.start_rows(true);
  Sums<T> sums;
  pipeline.run(sums, 0, pipeline.blocks, true, warp_m, warp_n, lane);
  __syncthreads();
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int output = warp_m * 32 + m * 16 + half * 8 + g;
      float scale = p.scales[first_output + output], bias = p.biases[first_output + output];
#pragma unroll
      for (int n = 0; n < T::NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++)
          staged[((warp_n * T::NT + n) * 8 + 2 * q + e) * STRIDE + output] = scaled(sums.total(m, n, half * 2 + e), scale, bias);
    }
  __syncthreads();
  int outputs = min(T::BM, p.vocabulary - first_output);
  for (int i = threadIdx.x; i < T::BN * T::BM; i += T::THREADS) {
    int n = i / T::BM, output = i % T::BM, row = first_row + n;
    if (row < used && output < outputs)
      p.logits[(size_t)row * p.vocabulary + first_output + output] = staged[n * STRIDE + output];
  }
}

constexpr int TOP = 64, TOP_THREADS = 256;
constexpr int SUM_BLOCK = 64;        // ids whose terms are added up first
constexpr int SUM_BLOCKS = 32;       // that are computed at a time
constexpr int SUM_STRIDE = SUM_BLOCK + 1;

struct TopShared {
  double terms[SUM_BLOCKS * SUM_STRIDE], sums[SUM_BLOCKS], total;
  u64 chosen[TOP];
  u32 bins[256], best[TOP_THREADS / 32], bin, above, inside, count;
};

// Orders logits as numbers: -0 equals 0. There are no NaN.
DEVICE u32 ordered(float logit) {
  u32 bits = __float_as_uint(__fadd_rn(logit, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
DEVICE float unordered(u32 key) { return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key); }
// Greater for a higher logit and, among equal ones, for a lower id.
DEVICE u64 ranked(float logit, int id) { return (u64)ordered(logit) << 32 | (0xffffffffu - (u32)id); }

// The highest logits of each row in falling order, equal ones in the order of
// their ids, and the log-sum-exp of all. One block processes one row.
DEVICE void top_row(const TopArguments& p) {
  SHARED_MEMORY();
  TopShared& s = *(TopShared*)shared;
  dependency_wait();
  dependency_release();
  int row = blockIdx.x, thread = threadIdx.x, lane = thread & 31;
  if (row >= (int)p.table[0]) return;
  const float* logits = p.logits + (size_t)row * p.vocabulary;

  u32 best = 0;
  for (int id = thread; id < p.vocabulary; id += TOP_THREADS) best = max(best, ordered(logits[id]));
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) best = max(best, __shfl_xor_sync(0xffffffffu, best, mask));
  if (lane == 0) s.best[thread / 32] = best;
  if (thread == 0) {
    s.total = 0.0;
    s.count = 0;
  }
  __syncthreads();
  for (int warp = 0; warp < TOP_THREADS / 32; warp++) best = max(best, s.best[warp]);
  double highest = (double)unordered(best);

  for (int first = 0; first < p.vocabulary; first += SUM_BLOCKS * SUM_BLOCK) {
    int count = min(SUM_BLOCKS * SUM_BLOCK, p.vocabulary - first);
    for (int i = thread; i < count; i += TOP_THREADS)
      s.terms[i / SUM_BLOCK * SUM_STRIDE + i % SUM_BLOCK] = exp_in_order(__dsub_rn((double)logits[first + i], highest));
    __syncthreads();
    int blocks = (count + SUM_BLOCK - 1) / SUM_BLOCK;
    if (thread < blocks) {
      double sum = 0.0;
      int terms = min(SUM_BLOCK, count - thread * SUM_BLOCK);
      for (int i = 0; i < terms; i++) sum = __dadd_rn(sum, s.terms[thread * SUM_STRIDE + i]);
      s.sums[thread] = sum;
    }
    __syncthreads();
    if (thread == 0)
      for (int block = 0; block < blocks; block++) s.total = __dadd_rn(s.total, s.sums[block]);
  }
  if (thread == 0) p.log_sums[row] = __dadd_rn(highest, ln_in_order(s.total));

  // The rank that the last chosen logit has at least, 8 bits at a time.
  int wanted = min(TOP, p.vocabulary);
  u64 threshold = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    s.bins[thread] = 0;
    __syncthreads();
    for (int id = thread; id < p.vocabulary; id += TOP_THREADS) {
      u64 rank = ranked(logits[id], id);
      if (shift == 56 || rank >> (shift + 8) == threshold >> (shift + 8)) atomicAdd(&s.bins[rank >> shift & 255], 1u);
    }
    __syncthreads();
    if (thread < 32) {  // lane 0 has the eight highest bins
      u32 own = 0;
      for (int i = 0; i < 8; i++) own += s.bins[255 - lane * 8 - i];
      u32 upto = own;
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        u32 other = __shfl_up_sync(0xffffffffu, upto, distance);
        if (lane >= distance) upto += other;
      }
      u32 above = upto - own;
      if (above < (u32)wanted && (u32)wanted <= upto) {
        int bin = 255 - lane * 8;
        while (above + s.bins[bin] < (u32)wanted) above += s.bins[bin--];
        s.bin = bin;
        s.above = above;
        s.inside = s.bins[bin];
      }
    }
    __syncthreads();
    threshold |= (u64)s.bin << shift;
    wanted -= s.above;
    bool all = (int)s.inside == wanted;
    __syncthreads();
    if (all) break;  // everything that begins like this is chosen
  }

  for (int id = thread; id < p.vocabulary; id += TOP_THREADS) {
    u64 rank = ranked(logits[id], id);
    if (rank >= threshold) s.chosen[atomicAdd(&s.count, 1u)] = rank;
  }
  __syncthreads();
  if (thread < TOP && thread >= (int)s.count) s.chosen[thread] = 0;
  __syncthreads();
  for (int size = 2; size <= TOP; size *= 2)  // bitonic sort
    for (int distance = size / 2; distance > 0; distance /= 2) {
      int other = thread ^ distance;
      if (thread < TOP && other > thread) {
        u64 a = s.chosen[thread], b = s.chosen[other];
        bool falling = (thread & size) == 0;
        if (falling ? a < b : a > b) {
          s.chosen[thread] = b;
          s.chosen[other] = a;
        }
      }
      __syncthreads();
    }
  if (thread < TOP && thread < (int)s.count) {
    u32 id = 0xffffffffu - (u32)s.chosen[thread];
    p.ids[row * TOP + thread] = id;
    p.top[row * TOP + thread] = logits[id];
  }
}

extern "C" __global__ void __launch_bounds__(TOP_THREADS) top_logits(const TopArguments p) { top_row(p); }

// The name is the number of units of a layer that a block has. A block has a
// warp per layer and 8 units.
extern "C" __global__ void __launch_bounds__(256, 1) prefill_8(const PrefillArguments p) { prefill_rows<1>(p); }
extern "C" __global__ void __launch_bounds__(256, 1) prefill_16(const PrefillArguments p) { prefill_rows<2>(p); }

// Collects state rows in consecutive memory, which may be the host's. One block
// copies one row.
extern "C" __global__ void __launch_bounds__(256) copy_states(const CopyArguments p) {
  const uint4* from = (const uint4*)(p.states + (size_t)p.rows[blockIdx.x] * p.bytes);
  uint4* to = (uint4*)(p.out + (size_t)blockIdx.x * p.bytes);
  for (int i = threadIdx.x; i < p.bytes / 16; i += 256) to[i] = from[i];
}

#define KERNELS(NAME, BLOCKS, WM, WN, NT, STAGES) \
  using Tile##NAME = Tile<WM, WN, NT, STAGES>; \
  static_assert(Tile##NAME::BN == NAME, "the name is the number of batch rows"); \
  extern "C" __global__ void __launch_bounds__(Tile##NAME::THREADS, BLOCKS) layer_##NAME(const LayerArguments p) { \
    layer_kernel<Tile##NAME>(p); \
  } \
  extern "C" __global__ void __launch_bounds__(Tile##NAME::THREADS, BLOCKS) output_##NAME(const OutputArguments p) { \
    output_kernel<Tile##NAME>(p); \
  }
// Must match `TILES` in launch.rs. With 17 stages, both products of a layer of
// 512 units are copied in advance.
KERNELS(8, 1, 2, 1, 1, 17)
KERNELS(16, 1, 2, 1, 2, 17)
KERNELS(32, 1, 4, 2, 2, 8)
KERNELS(64, 2, 4, 2, 4, 6)
KERNELS(128, 1, 4, 2, 8, 4)
