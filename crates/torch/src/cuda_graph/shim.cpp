// CUDA streams and graphs of libtorch, which tch has no functions for. The functions
// are looked up at run time, so that one program runs with and without the CUDA
// libraries of libtorch. Layouts and names are those of libtorch 2.11 with the
// Itanium C++ ABI (c10/cuda/CUDAStream.h, ATen/cuda/CUDAGraph.h).

#include <dlfcn.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <utility>

namespace {

// c10::cuda::CUDAStream.
struct Stream {
  int8_t device_type;
  int8_t device_index;
  int64_t id;
};
static_assert(sizeof(Stream) == 16);

// at::cuda::MempoolId_t.
using Pool = std::pair<unsigned long long, unsigned long long>;

// cudaStreamCaptureModeThreadLocal: other threads, which generate text on the same
// GPU, may allocate memory during a capture.
constexpr int THREAD_LOCAL = 1;

// Memory for an at::cuda::CUDAGraph, with room to spare.
struct alignas(16) Graph {
  unsigned char bytes[1024];
};

struct Functions {
  Stream (*stream_from_pool)(bool, int8_t);
  Stream (*current_stream)(int8_t);
  void (*set_current_stream)(Stream);
  void (*construct)(Graph *, bool);
  void (*destroy)(Graph *);
  void (*capture_begin)(Graph *, Pool, int);
  void (*capture_end)(Graph *);
  void (*replay)(Graph *);
  bool complete;

  Functions() : complete(true) {
    find(stream_from_pool, "_ZN3c104cuda17getStreamFromPoolEba");
    find(current_stream, "_ZN3c104cuda20getCurrentCUDAStreamEa");
    find(set_current_stream, "_ZN3c104cuda20setCurrentCUDAStreamENS0_10CUDAStreamE");
    find(construct, "_ZN2at4cuda9CUDAGraphC1Eb");
    find(destroy, "_ZN2at4cuda9CUDAGraphD1Ev");
    find(capture_begin,
         "_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
    find(capture_end, "_ZN2at4cuda9CUDAGraph11capture_endEv");
    find(replay, "_ZN2at4cuda9CUDAGraph6replayEv");
  }

  template <typename Function> void find(Function &function, const char *name) {
    void *address = dlsym(RTLD_DEFAULT, name);
    static_assert(sizeof(function) == sizeof(address));
    std::memcpy(&function, &address, sizeof(address));
    complete = complete && address != nullptr;
  }
};

const Functions &functions() {
  static const Functions found;
  return found;
}

// Calls a function of libtorch; writes what it throws to `message`. Returns whether
// it threw nothing.
template <typename Call> bool guarded(char *message, size_t size, Call call) {
  const auto fail = [&](const char *text) {
    std::strncpy(message, text, size - 1);
    message[size - 1] = '\0';
    return false;
  };
  try {
    if (!functions().complete) {
      return fail("libtorch's functions for CUDA graphs were not found: libtorch 2.11 "
                  "for CUDA is needed");
    }
    call(functions());
    return true;
  } catch (const std::exception &error) {
    return fail(error.what());
  } catch (...) {
    return fail("unknown exception");
  }
}

} // namespace

extern "C" {

// Reserves a stream of the device.
bool charlstm_stream_new(int8_t device, Stream *stream, char *message, size_t size) {
  return guarded(message, size, [&](const Functions &torch) {
    *stream = torch.stream_from_pool(false, device);
  });
}

// Makes a stream the current one of the calling thread; writes the one that was it.
bool charlstm_stream_enter(const Stream *stream, Stream *before, char *message, size_t size) {
  return guarded(message, size, [&](const Functions &torch) {
    *before = torch.current_stream(stream->device_index);
    torch.set_current_stream(*stream);
  });
}

// Starts a capture of what the calling thread launches on its current stream.
bool charlstm_graph_begin(Graph **graph, char *message, size_t size) {
  return guarded(message, size, [&](const Functions &torch) {
    Graph *memory = new Graph();
    torch.construct(memory, false);
    // Set before anything can fail: the caller destroys it.
    *graph = memory;
    torch.capture_begin(memory, Pool(0, 0), THREAD_LOCAL);
  });
}

// Ends the capture; from then on, the graph can be replayed.
bool charlstm_graph_end(Graph *graph, char *message, size_t size) {
  return guarded(message, size,
                 [&](const Functions &torch) { torch.capture_end(graph); });
}

// Launches what was captured on the current stream.
bool charlstm_graph_replay(Graph *graph, char *message, size_t size) {
  return guarded(message, size, [&](const Functions &torch) { torch.replay(graph); });
}

// Frees a graph; its work must have ended.
bool charlstm_graph_free(Graph *graph, char *message, size_t size) {
  const bool freed =
      guarded(message, size, [&](const Functions &torch) { torch.destroy(graph); });
  delete graph;
  return freed;
}
}
