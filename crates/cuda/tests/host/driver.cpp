// A stand-in for libcuda and libnvrtc: the functions that this crate calls (see
// library.rs), with the kernels compiled as C++. So everything but the GPU runs on a
// machine without one: this crate's host code, programs, and a whole server.
//
// What is submitted to a stream runs when the host waits for the stream, and no
// earlier: results that are read too early, and memory that is changed or freed too
// early, show.
//
// With CUDA_STAND_IN_FAILS_AFTER=N, the device is lost after N kernels. With
// CUDA_STAND_IN_IS_WRONG=1, weights arrive on the device with wrong bits.
#include "kernels_on_host.cpp"

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

enum Result {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  ILLEGAL_STATE = 401,
  NOT_FOUND = 500,
  LAUNCH_FAILED = 719,
  CAPTURE_UNSUPPORTED = 900,
};

// The attributes of a Hopper GPU, as far as they are asked for, with few
// multiprocessors.
constexpr int MULTIPROCESSORS = 16;
constexpr int MAX_SHARED_BYTES = 227 * 1024;
enum Attribute {
  MULTIPROCESSOR_COUNT = 16,
  COMPUTE_CAPABILITY_MAJOR = 75,
  COMPUTE_CAPABILITY_MINOR = 76,
  MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
};
// Smaller copies are not of weights.
constexpr std::size_t WEIGHTS = 4096;
constexpr std::size_t MEMORY = std::size_t{4} << 30;

using Operation = std::function<void()>;

struct Stream {
  std::deque<Operation> submitted;
  bool recording = false;
  std::vector<Operation> recorded;
};
struct Event {
  Stream* stream = nullptr;
  std::size_t after = 0;
};
struct Graph { std::vector<Operation> operations; };

std::recursive_mutex mutex;
std::set<Stream*> streams;
std::map<std::uintptr_t, std::size_t> allocated;
std::size_t used = 0;
thread_local void* current_context = nullptr;
int the_context, the_module;

using Lock = std::lock_guard<std::recursive_mutex>;

long setting(const char* name, long otherwise) {
  const char* value = std::getenv(name);
  return value ? std::atol(value) : otherwise;
}
const bool is_wrong = setting("CUDA_STAND_IN_IS_WRONG", 0) != 0;
long kernels_left = setting("CUDA_STAND_IN_FAILS_AFTER", -1);
bool is_lost = false;

// Runs what was submitted. A lost device runs nothing any more.
void finish(Stream& stream) {
  while (!stream.submitted.empty()) {
    Operation operation = std::move(stream.submitted.front());
    stream.submitted.pop_front();
    if (!is_lost) operation();
  }
}
void finish_all() {
  for (Stream* stream : std::set<Stream*>(streams)) finish(*stream);
}
Result submit(Stream* stream, Operation operation) {
  Lock lock(mutex);
  if (is_lost) return LAUNCH_FAILED;
  if (!streams.count(stream)) return INVALID_VALUE;
  if (stream->recording)
    stream->recorded.push_back(std::move(operation));
  else
    stream->submitted.push_back(std::move(operation));
  return SUCCESS;
}

// CUlaunchConfig.
struct LaunchConfig {
  unsigned x, y, z, threads, threads_y, threads_z, shared_bytes;
  Stream* stream;
  void* attributes;
  unsigned attribute_count;
};

}  // namespace

#define DRIVER extern "C" __attribute__((visibility("default"))) int

DRIVER cuInit(unsigned) { return SUCCESS; }
DRIVER cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
DRIVER cuGetErrorString(int, const char** text) { return *text = "an error of the stand-in", SUCCESS; }
DRIVER cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
DRIVER cuDeviceGet(int* device, int ordinal) { return *device = ordinal, SUCCESS; }
DRIVER cuDeviceGetName(char* name, int size, int) { return std::snprintf(name, static_cast<std::size_t>(size), "stand-in"), SUCCESS; }
DRIVER cuDeviceTotalMem_v2(std::size_t* bytes, int) { return *bytes = MEMORY, SUCCESS; }
DRIVER cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case MULTIPROCESSOR_COUNT: *value = MULTIPROCESSORS; break;
    case COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = MAX_SHARED_BYTES; break;
    default: *value = 0;
  }
  return SUCCESS;
}
DRIVER cuDevicePrimaryCtxRetain(void** context, int) { return *context = &the_context, SUCCESS; }
DRIVER cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
DRIVER cuCtxGetCurrent(void** context) { return *context = current_context, SUCCESS; }
DRIVER cuCtxSetCurrent(void* context) { return current_context = context, SUCCESS; }
DRIVER cuCtxSynchronize() {
  Lock lock(mutex);
  finish_all();
  return is_lost ? LAUNCH_FAILED : SUCCESS;
}
DRIVER cuCtxGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -5, SUCCESS; }

// Memory. Without a current context, CUDA fails.
DRIVER cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  Lock lock(mutex);
  *total = MEMORY;
  *free = MEMORY - used;
  return SUCCESS;
}
DRIVER cuMemAlloc_v2(std::uintptr_t* address, std::size_t bytes) {
  Lock lock(mutex);
  if (is_lost) return LAUNCH_FAILED;
  if (!current_context) return INVALID_VALUE;
  if (bytes > MEMORY - used) return OUT_OF_MEMORY;
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!memory) return OUT_OF_MEMORY;
  std::memset(memory, 0xEE, bytes);
  *address = reinterpret_cast<std::uintptr_t>(memory);
  allocated[*address] = bytes;
  used += bytes;
  return SUCCESS;
}
DRIVER cuMemFree_v2(std::uintptr_t address) {
  Lock lock(mutex);
  auto found = allocated.find(address);
  if (found == allocated.end()) return INVALID_VALUE;
  finish_all();
  std::memset(reinterpret_cast<void*>(address), 0xDD, found->second);
  used -= found->second;
  allocated.erase(found);
  std::free(reinterpret_cast<void*>(address));
  return SUCCESS;
}
DRIVER cuMemHostAlloc(void** memory, std::size_t bytes, unsigned) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *memory ? SUCCESS : OUT_OF_MEMORY;
}
DRIVER cuMemFreeHost(void* memory) {
  Lock lock(mutex);
  finish_all();
  std::free(memory);
  return SUCCESS;
}
DRIVER cuMemsetD8Async(std::uintptr_t address, unsigned char value, std::size_t bytes, Stream* stream) {
  return submit(stream, [=] { std::memset(reinterpret_cast<void*>(address), value, bytes); });
}
DRIVER cuMemsetD32Async(std::uintptr_t address, unsigned value, std::size_t words, Stream* stream) {
  return submit(stream, [=] {
    for (std::size_t i = 0; i < words; i++) reinterpret_cast<unsigned*>(address)[i] = value;
  });
}
DRIVER cuMemcpyHtoDAsync_v2(std::uintptr_t to, const void* from, std::size_t bytes, Stream* stream) {
  return submit(stream, [=] {
    auto* bytes_there = reinterpret_cast<unsigned char*>(to);
    std::memcpy(bytes_there, from, bytes);
    if (is_wrong && bytes >= WEIGHTS)
      for (std::size_t i = 0; i < bytes; i += 16) bytes_there[i] ^= 1;
  });
}
DRIVER cuMemcpyDtoHAsync_v2(void* to, std::uintptr_t from, std::size_t bytes, Stream* stream) {
  return submit(stream, [=] { std::memcpy(to, reinterpret_cast<const void*>(from), bytes); });
}

// Kernels: a function is its name.
DRIVER cuModuleLoadData(void** module, const void*) { return *module = &the_module, SUCCESS; }
DRIVER cuModuleUnload(void*) { return SUCCESS; }
DRIVER cuModuleGetFunction(void** function, void*, const char* name) {
  static std::set<std::string> names;
  Lock lock(mutex);
  *function = const_cast<char*>(names.insert(name).first->c_str());
  return SUCCESS;
}
DRIVER cuFuncSetAttribute(void*, int, int) { return SUCCESS; }
DRIVER cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void*, int, std::size_t, unsigned) {
  return *blocks = 1, SUCCESS;
}
DRIVER cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void**) {
  Dimensions grid{config->x, config->y, config->z};
  // Copies the arguments, as CUDA does.
  Operation run = prepared(static_cast<const char*>(function), parameters[0], grid, config->threads, config->shared_bytes);
  if (!run) return NOT_FOUND;
  return submit(config->stream, [run = std::move(run)] {
    is_lost = kernels_left == 0;
    if (is_lost) return;
    if (kernels_left > 0) kernels_left--;
    run();
  });
}

// Streams.
DRIVER cuStreamCreateWithPriority(Stream** stream, unsigned, int) {
  Lock lock(mutex);
  *stream = new Stream;
  streams.insert(*stream);
  return SUCCESS;
}
DRIVER cuStreamDestroy_v2(Stream* stream) {
  Lock lock(mutex);
  finish(*stream);
  streams.erase(stream);
  delete stream;
  return SUCCESS;
}
DRIVER cuStreamSynchronize(Stream* stream) {
  Lock lock(mutex);
  if (!streams.count(stream)) return INVALID_VALUE;
  if (stream->recording) return CAPTURE_UNSUPPORTED;
  finish(*stream);
  return is_lost ? LAUNCH_FAILED : SUCCESS;
}
DRIVER cuEventCreate(Event** event, unsigned) { return *event = new Event, SUCCESS; }
DRIVER cuEventDestroy_v2(Event* event) { return delete event, SUCCESS; }
DRIVER cuEventRecord(Event* event, Stream* stream) { return event->stream = stream, SUCCESS; }
DRIVER cuStreamWaitEvent(Stream*, Event* event, unsigned) {
  Lock lock(mutex);
  if (streams.count(event->stream)) finish(*event->stream);
  return SUCCESS;
}

// Graphs.
DRIVER cuStreamBeginCapture_v2(Stream* stream, int) {
  Lock lock(mutex);
  if (stream->recording) return ILLEGAL_STATE;
  stream->recording = true;
  return SUCCESS;
}
DRIVER cuStreamEndCapture(Stream* stream, Graph** graph) {
  Lock lock(mutex);
  if (!stream->recording) return ILLEGAL_STATE;
  stream->recording = false;
  *graph = new Graph{std::move(stream->recorded)};
  stream->recorded.clear();
  return SUCCESS;
}
DRIVER cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
  return *executable = new Graph(*graph), SUCCESS;
}
DRIVER cuGraphUpload(Graph*, Stream*) { return SUCCESS; }
DRIVER cuGraphLaunch(Graph* graph, Stream* stream) {
  for (const Operation& operation : graph->operations)
    if (int failure = submit(stream, operation)) return failure;
  return SUCCESS;
}
DRIVER cuGraphDestroy(Graph* graph) { return delete graph, SUCCESS; }
DRIVER cuGraphExecDestroy(Graph* graph) {
  Lock lock(mutex);
  finish_all();
  return delete graph, SUCCESS;
}

// NVRTC: every program compiles to nothing.
DRIVER nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, SUCCESS; }
DRIVER nvrtcGetNumSupportedArchs(int* count) { return *count = 1, SUCCESS; }
DRIVER nvrtcGetSupportedArchs(int* architectures) { return *architectures = 90, SUCCESS; }
DRIVER nvrtcCreateProgram(void** program, const char*, const char*, int, const char* const*, const char* const*) {
  return *program = &the_module, SUCCESS;
}
DRIVER nvrtcCompileProgram(void*, int, const char* const*) { return SUCCESS; }
DRIVER nvrtcDestroyProgram(void**) { return SUCCESS; }
DRIVER nvrtcGetProgramLogSize(void*, std::size_t* bytes) { return *bytes = 1, SUCCESS; }
DRIVER nvrtcGetProgramLog(void*, char* log) { return *log = 0, SUCCESS; }
DRIVER nvrtcGetCUBINSize(void*, std::size_t* bytes) { return *bytes = 1, SUCCESS; }
DRIVER nvrtcGetCUBIN(void*, char* image) { return *image = 1, SUCCESS; }
DRIVER nvrtcGetPTXSize(void*, std::size_t* bytes) { return *bytes = 1, SUCCESS; }
DRIVER nvrtcGetPTX(void*, char* image) { return *image = 0, SUCCESS; }
