// A stand-in for the CUDA runtime, cuDNN and cuBLAS on a machine without a GPU. Device
// memory is main memory, and copies are made; kernels and library calls compute
// nothing, or zeros. Streams can be captured and replayed, and what CUDA forbids during a
// capture fails here, too. So libtorch's CUDA code runs up to the kernels.
//
// Every other function of these libraries that libtorch calls succeeds and does
// nothing: see build.py.

#include <cuda_runtime_api.h>
#include <cudnn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#define STAND_IN extern "C" __attribute__((visibility("default")))

namespace {

using Operation = std::function<void()>;

struct Capture {
  cudaStreamCaptureMode mode;
  unsigned long long id;
  std::vector<Operation> operations;
};

struct Size {
  int count = 0;
  int values[8] = {};
};

struct Layer {
  size_t input, hidden;
};

struct State {
  std::recursive_mutex mutex;
  std::map<cudaStream_t, Capture> captures;
  unsigned long long captured = 0;
  std::map<char *, size_t> memory;
  std::map<void *, cudaStream_t> stream_of_handle;
  std::map<void *, Layer> layers;
  std::map<void *, Size> sizes;
};

// Never destroyed: libraries call these functions before and after `main`.
State &state() {
  static State *const only = new State;
  return *only;
}

using Lock = std::lock_guard<std::recursive_mutex>;

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
thread_local int captures_of_thread = 0;
thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaStream_t stream_of_launch;

cudaError_t forbidden(const char *what) {
  std::fprintf(stderr, "forbidden during a capture: %s\n", what);
  last_error = cudaErrorStreamCaptureUnsupported;
  return last_error;
}

bool is_capturing(cudaStream_t stream) {
  Lock lock(state().mutex);
  return state().captures.count(stream) != 0;
}

// Whether calls that may wait for a device are forbidden in this thread.
bool must_not_wait() {
  Lock lock(state().mutex);
  if (thread_mode == cudaStreamCaptureModeRelaxed) {
    return false;
  }
  const auto is_global = [](const auto &entry) {
    return entry.second.mode == cudaStreamCaptureModeGlobal;
  };
  const auto &captures = state().captures;
  return captures_of_thread > 0 ||
         std::any_of(captures.begin(), captures.end(), is_global);
}

cudaError_t run(cudaStream_t stream, Operation operation) {
  Lock lock(state().mutex);
  const auto capture = state().captures.find(stream);
  if (capture == state().captures.end()) {
    operation();
  } else {
    capture->second.operations.push_back(std::move(operation));
  }
  return cudaSuccess;
}

// CUDA would permit a kernel on another stream, but it would be missing in the graph.
cudaError_t launch(cudaStream_t stream) {
  Lock lock(state().mutex);
  if (!state().captures.empty() && !is_capturing(stream)) {
    return forbidden("a kernel on another stream");
  }
  return run(stream, [] {});
}

cudnnStatus_t run_on(cudnnHandle_t handle) {
  Lock lock(state().mutex);
  run(state().stream_of_handle[handle], [] {});
  return CUDNN_STATUS_SUCCESS;
}

template <typename Handle> void create(Handle *handle) {
  *handle = reinterpret_cast<Handle>(std::calloc(1, 64));
}

void *allocate(size_t size) {
  const size_t rounded = (size + 511) / 512 * 512;
  void *const memory = std::aligned_alloc(512, rounded);
  return memory == nullptr ? nullptr : std::memset(memory, 0, rounded);
}

} // namespace

// Kernels.

STAND_IN void **__cudaRegisterFatBinary(void *) {
  static void *handle;
  return &handle;
}
STAND_IN void __cudaRegisterFatBinaryEnd(void **) {}
STAND_IN void __cudaUnregisterFatBinary(void **) {}
STAND_IN unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, cudaStream_t stream) {
  stream_of_launch = stream;
  return 0;
}
STAND_IN cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared,
                                                void *stream) {
  *grid = *block = dim3{1, 1, 1};
  *shared = 0;
  *static_cast<cudaStream_t *>(stream) = stream_of_launch;
  return cudaSuccess;
}
STAND_IN cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void *>(function));
  return cudaSuccess;
}
STAND_IN cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void **, size_t,
                                        cudaStream_t stream) {
  return launch(stream);
}
STAND_IN cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *,
                                         void **) {
  return launch(config->stream);
}
STAND_IN cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks,
                                                                            const void *, int,
                                                                            size_t, unsigned) {
  *blocks = 8;
  return cudaSuccess;
}

// The device.

STAND_IN cudaError_t cudaGetDeviceCount(int *count) {
  *count = 1;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaGetDeviceProperties(cudaDeviceProp *device, int) {
  *device = {};
  std::strcpy(device->name, "stand-in");
  device->major = 9;
  device->multiProcessorCount = 132;
  device->warpSize = 32;
  device->maxThreadsPerBlock = 1024;
  device->maxThreadsPerMultiProcessor = 2048;
  device->maxBlocksPerMultiProcessor = 32;
  device->totalGlobalMem = size_t{16} << 30;
  device->sharedMemPerBlock = 48 << 10;
  device->sharedMemPerBlockOptin = 227 << 10;
  device->sharedMemPerMultiprocessor = 228 << 10;
  device->regsPerBlock = device->regsPerMultiprocessor = 65536;
  device->l2CacheSize = 50 << 20;
  const int grid[] = {2147483647, 65535, 65535}, block[] = {1024, 1024, 64};
  std::copy_n(grid, 3, device->maxGridSize);
  std::copy_n(block, 3, device->maxThreadsDim);
  return cudaSuccess;
}
STAND_IN cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 1;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
  *can = 0;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaDeviceSynchronize() {
  return must_not_wait() ? forbidden("cudaDeviceSynchronize") : cudaSuccess;
}
STAND_IN cudaError_t cudaPeekAtLastError() { return last_error; }
STAND_IN cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}
STAND_IN const char *cudaGetErrorString(cudaError_t) { return "an error of the stand-in"; }
STAND_IN const char *cudaGetErrorName(cudaError_t) { return "standInError"; }

// Memory.

STAND_IN cudaError_t cudaMalloc(void **memory, size_t size) {
  if (must_not_wait()) {
    return forbidden("cudaMalloc");
  }
  *memory = allocate(size);
  Lock lock(state().mutex);
  state().memory[static_cast<char *>(*memory)] = size;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaFree(void *memory) {
  if (memory != nullptr && must_not_wait()) {
    return forbidden("cudaFree");
  }
  Lock lock(state().mutex);
  state().memory.erase(static_cast<char *>(memory));
  std::free(memory);
  return cudaSuccess;
}
STAND_IN cudaError_t cudaHostAlloc(void **memory, size_t size, unsigned) {
  if (must_not_wait()) {
    return forbidden("cudaHostAlloc");
  }
  *memory = allocate(size);
  return cudaSuccess;
}
STAND_IN cudaError_t cudaFreeHost(void *memory) {
  std::free(memory);
  return cudaSuccess;
}
STAND_IN cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  *free = *total = size_t{16} << 30;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size,
                                     cudaMemcpyKind kind, cudaStream_t stream) {
  if (is_capturing(stream) && kind != cudaMemcpyDeviceToDevice) {
    return forbidden("a copy to or from main memory");
  }
  return run(stream, [=] { std::memmove(to, from, size); });
}
STAND_IN cudaError_t cudaMemcpy(void *to, const void *from, size_t size, cudaMemcpyKind) {
  if (must_not_wait()) {
    return forbidden("cudaMemcpy");
  }
  std::memmove(to, from, size);
  return cudaSuccess;
}
STAND_IN cudaError_t cudaMemsetAsync(void *memory, int value, size_t size,
                                     cudaStream_t stream) {
  return run(stream, [=] { std::memset(memory, value, size); });
}
STAND_IN cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes,
                                              const void *address) {
  Lock lock(state().mutex);
  char *const byte = static_cast<char *>(const_cast<void *>(address));
  const auto &memory = state().memory;
  const auto after = memory.upper_bound(byte);
  const bool is_on_device =
      after != memory.begin() && byte < std::prev(after)->first + std::prev(after)->second;
  *attributes = {};
  attributes->type = is_on_device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  attributes->devicePointer = is_on_device ? byte : nullptr;
  return cudaSuccess;
}

// Streams and graphs.

STAND_IN cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int) {
  create(stream);
  return cudaSuccess;
}
STAND_IN cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return is_capturing(stream) || must_not_wait() ? forbidden("cudaStreamSynchronize")
                                                : cudaSuccess;
}
STAND_IN cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return is_capturing(stream) ? forbidden("cudaStreamQuery") : cudaSuccess;
}
STAND_IN cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                           cudaStreamCaptureStatus *status) {
  *status = is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream,
                                              cudaStreamCaptureStatus *status,
                                              unsigned long long *id, cudaGraph_t *graph,
                                              const cudaGraphNode_t **, const cudaGraphEdgeData **,
                                              size_t *count) {
  Lock lock(state().mutex);
  const auto found = state().captures.find(stream);
  const bool is_active = found != state().captures.end();
  *status = is_active ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id != nullptr) {
    *id = is_active ? found->second.id : 0;
  }
  if (graph != nullptr) {
    *graph = nullptr;
  }
  if (count != nullptr) {
    *count = 0;
  }
  return cudaSuccess;
}
STAND_IN cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  Lock lock(state().mutex);
  if (stream == nullptr) {
    return forbidden("a capture of the default stream");
  }
  state().captures[stream] = Capture{mode, ++state().captured, {}};
  ++captures_of_thread;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  Lock lock(state().mutex);
  const auto found = state().captures.find(stream);
  *graph = reinterpret_cast<cudaGraph_t>(new auto(found->second.operations));
  std::fprintf(stderr, "captured %zu operations\n", found->second.operations.size());
  state().captures.erase(found);
  --captures_of_thread;
  return cudaSuccess;
}
STAND_IN cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *launchable,
                                                   cudaGraph_t graph, unsigned long long) {
  const auto *const operations = reinterpret_cast<std::vector<Operation> *>(graph);
  *launchable = reinterpret_cast<cudaGraphExec_t>(new auto(*operations));
  return cudaSuccess;
}
STAND_IN cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  for (const Operation &operation : *reinterpret_cast<std::vector<Operation> *>(graph)) {
    run(stream, operation);
  }
  return cudaSuccess;
}
STAND_IN cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *count) {
  *count = reinterpret_cast<std::vector<Operation> *>(graph)->size();
  return cudaSuccess;
}
STAND_IN cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<std::vector<Operation> *>(graph);
  return cudaSuccess;
}
STAND_IN cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete reinterpret_cast<std::vector<Operation> *>(graph);
  return cudaSuccess;
}
STAND_IN cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}
STAND_IN cudaError_t cudaEventCreate(cudaEvent_t *event) {
  create(event);
  return cudaSuccess;
}
STAND_IN cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  create(event);
  return cudaSuccess;
}

// cuDNN: its LSTM, and where it expects the weights.

STAND_IN size_t cudnnGetVersion() { return CUDNN_VERSION; }
STAND_IN size_t cudnnGetCudartVersion() { return CUDART_VERSION; }
STAND_IN const char *cudnnGetErrorString(cudnnStatus_t) { return "an error of the stand-in"; }
STAND_IN void cudnnGetLastErrorString(char *message, size_t size) {
  if (size != 0) {
    *message = '\0';
  }
}
STAND_IN cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  Lock lock(state().mutex);
  state().stream_of_handle[handle] = stream;
  return CUDNN_STATUS_SUCCESS;
}
STAND_IN cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream) {
  Lock lock(state().mutex);
  *stream = state().stream_of_handle[handle];
  return CUDNN_STATUS_SUCCESS;
}
STAND_IN cudnnStatus_t cudnnSetTensorNdDescriptor(cudnnTensorDescriptor_t tensor,
                                                  cudnnDataType_t, int count,
                                                  const int *values, const int *) {
  Lock lock(state().mutex);
  Size &size = state().sizes[tensor];
  size.count = count;
  std::copy_n(values, count, size.values);
  return CUDNN_STATUS_SUCCESS;
}
STAND_IN cudnnStatus_t cudnnGetTensorNdDescriptor(const cudnnTensorDescriptor_t tensor,
                                                  int wanted, cudnnDataType_t *type,
                                                  int *count, int *values, int *strides) {
  Lock lock(state().mutex);
  const Size size = state().sizes[tensor];
  *type = CUDNN_DATA_FLOAT;
  *count = size.count;
  int stride = 1;
  for (int i = size.count - 1; i >= 0; --i) {
    if (i < wanted) {
      values[i] = size.values[i];
      strides[i] = stride;
    }
    stride *= size.values[i];
  }
  return CUDNN_STATUS_SUCCESS;
}
STAND_IN cudnnStatus_t
cudnnSetRNNDescriptor_v8(cudnnRNNDescriptor_t layer, cudnnRNNAlgo_t, cudnnRNNMode_t,
                         cudnnRNNBiasMode_t, cudnnDirectionMode_t, cudnnRNNInputMode_t,
                         cudnnDataType_t, cudnnDataType_t, cudnnMathType_t, int32_t input,
                         int32_t hidden, int32_t, int32_t, cudnnDropoutDescriptor_t, uint32_t) {
  Lock lock(state().mutex);
  state().layers[layer] = {static_cast<size_t>(input), static_cast<size_t>(hidden)};
  return CUDNN_STATUS_SUCCESS;
}
STAND_IN cudnnStatus_t cudnnGetRNNWeightSpaceSize(cudnnHandle_t, cudnnRNNDescriptor_t layer,
                                                  size_t *bytes) {
  Lock lock(state().mutex);
  const auto [input, hidden] = state().layers[layer];
  *bytes = sizeof(float) * (4 * hidden * (input + hidden) + 8 * hidden);
  return CUDNN_STATUS_SUCCESS;
}
STAND_IN cudnnStatus_t cudnnGetRNNTempSpaceSizes(cudnnHandle_t, cudnnRNNDescriptor_t,
                                                 cudnnForwardMode_t, cudnnRNNDataDescriptor_t,
                                                 size_t *workspace, size_t *reserve) {
  for (size_t *size : {workspace, reserve}) {
    if (size != nullptr) {
      *size = 1 << 20;
    }
  }
  return CUDNN_STATUS_SUCCESS;
}
STAND_IN cudnnStatus_t cudnnGetRNNWeightParams(cudnnHandle_t, cudnnRNNDescriptor_t layer,
                                               int32_t, size_t, const void *weights,
                                               int32_t matrix,
                                               cudnnTensorDescriptor_t matrix_size,
                                               void **matrix_address,
                                               cudnnTensorDescriptor_t bias_size,
                                               void **bias_address) {
  Lock lock(state().mutex);
  const auto [input, hidden] = state().layers[layer];
  const bool is_input = matrix < 4;
  const size_t offset = is_input ? matrix * hidden * input
                                 : 4 * hidden * input + (matrix - 4) * hidden * hidden;
  float *const first = static_cast<float *>(const_cast<void *>(weights));
  if (matrix_address != nullptr) {
    *matrix_address = first + offset;
    const int columns = static_cast<int>(is_input ? input : hidden);
    state().sizes[matrix_size] = {3, {1, static_cast<int>(hidden), columns}};
  }
  if (bias_address != nullptr) {
    *bias_address = first + 4 * hidden * (input + hidden) + matrix * hidden;
    state().sizes[bias_size] = {3, {1, static_cast<int>(hidden), 1}};
  }
  return CUDNN_STATUS_SUCCESS;
}
// Sets the hidden states to zero: they are copied, and must not be whatever was in
// their memory before.
STAND_IN cudnnStatus_t
cudnnRNNForward(cudnnHandle_t handle, cudnnRNNDescriptor_t, cudnnForwardMode_t, const int32_t *,
                cudnnRNNDataDescriptor_t, const void *, cudnnRNNDataDescriptor_t, void *,
                cudnnTensorDescriptor_t size_of_state, const void *, void *h,
                cudnnTensorDescriptor_t, const void *, void *c, size_t, const void *, size_t,
                void *, size_t, void *) {
  Lock lock(state().mutex);
  size_t bytes = sizeof(float);
  const Size size = state().sizes[size_of_state];
  for (int i = 0; i < size.count; ++i) {
    bytes *= size.values[i];
  }
  run(state().stream_of_handle[handle], [=] {
    std::memset(h, 0, bytes);
    std::memset(c, 0, bytes);
  });
  return CUDNN_STATUS_SUCCESS;
}
STAND_IN cudnnStatus_t
cudnnRNNBackwardData_v8(cudnnHandle_t handle, cudnnRNNDescriptor_t, const int32_t *,
                        cudnnRNNDataDescriptor_t, const void *, const void *,
                        cudnnRNNDataDescriptor_t, void *, cudnnTensorDescriptor_t, const void *,
                        const void *, void *, cudnnTensorDescriptor_t, const void *,
                        const void *, void *, size_t, const void *, size_t, void *, size_t,
                        void *) {
  return run_on(handle);
}
STAND_IN cudnnStatus_t
cudnnRNNBackwardWeights_v8(cudnnHandle_t handle, cudnnRNNDescriptor_t, cudnnWgradMode_t,
                           const int32_t *, cudnnRNNDataDescriptor_t, const void *,
                           cudnnTensorDescriptor_t, const void *, cudnnRNNDataDescriptor_t,
                           const void *, size_t, void *, size_t, void *, size_t, void *) {
  return run_on(handle);
}

// cuBLAS.

STAND_IN int cublasCreate_v2(void **handle) {
  create(handle);
  return 0;
}
STAND_IN int cublasSetStream_v2(void *handle, cudaStream_t stream) {
  Lock lock(state().mutex);
  state().stream_of_handle[handle] = stream;
  return 0;
}
STAND_IN int cublasSgemm_v2(void *handle) {
  Lock lock(state().mutex);
  run(state().stream_of_handle[handle], [] {});
  return 0;
}
STAND_IN int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *,
                                            void *, int, void *, int *found) {
  *found = 1;
  return 0;
}
