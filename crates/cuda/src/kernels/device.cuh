// Instructions that C++ has no name for. The host build replaces this file.

DEVICE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Starts copying 16 bytes from global to shared memory.
DEVICE void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global));
}

// Closes the group of the copies that this thread started since the last group.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's newest groups are incomplete.
template <int PENDING> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// Waits until the preceding kernel of the stream has completed, if this kernel
// was started before that (programmatic dependent launch; from sm_90 on).
DEVICE void dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Allows the next kernel of the stream to start. Must follow `dependency_wait`:
// otherwise the next kernel could start before the kernel that precedes this
// one has completed, and read what that one writes.
DEVICE void dependency_release() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// sums[16][8] += a[16][32] * b[32][8] over one warp: signed 8-bit factors,
// exact 32-bit sums.
DEVICE void mma_s8(int* sums, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A value that blocks of a running kernel pass to each other through global
// memory. It is written and read as a whole; two that are read together need
// not have been written together.
DEVICE void exchange_store(u64* to, u64 value) { asm volatile("st.relaxed.gpu.global.b64 [%0], %1;" ::"l"(to), "l"(value) : "memory"); }

DEVICE void exchange_load(const u64* from, u64& first, u64& second) {
  asm volatile("ld.relaxed.gpu.global.v2.b64 {%0,%1}, [%2];" : "=l"(first), "=l"(second) : "l"(from) : "memory");
}

// Between two looks at something that another block will write.
DEVICE void spin_pause() {}

// Ends the kernel with an error that the host sees; the context is lost.
DEVICE void fail() { __trap(); }

#define SHARED_MEMORY() \
  extern __shared__ uint4 shared_memory[]; \
  uint4* shared = shared_memory
