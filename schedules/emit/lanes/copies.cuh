// Launches that overlap; copies from global to shared memory, and the barriers that order them.

// Waits for the kernels before this one, which may have been launched while the last of them ended.
__device__ __forceinline__ void lane_wait_for_others() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ unsigned lane_shared(const void* place) {
  return static_cast<unsigned>(__cvta_generic_to_shared(place));
}

__device__ __forceinline__ void lane_copy16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(lane_shared(to)), "l"(from)
               : "memory");
}

__device__ __forceinline__ void lane_copy8(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(lane_shared(to)), "l"(from)
               : "memory");
}

__device__ __forceinline__ void lane_copy4(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(lane_shared(to)), "l"(from)
               : "memory");
}

__device__ __forceinline__ void lane_barrier_init(void* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(lane_shared(barrier)), "r"(arrivals)
               : "memory");
}

__device__ __forceinline__ void lane_arrive(void* barrier) {
  asm volatile("{\n .reg .b64 state;\n mbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(
                   lane_shared(barrier))
               : "memory");
}

// Arrives when the copies this thread has started are there.
__device__ __forceinline__ void lane_arrive_with_copies(void* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(lane_shared(barrier))
               : "memory");
}

__device__ __forceinline__ void lane_wait(void* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
#define PDSSM_TEST "mbarrier.try_wait.parity.shared.b64"
#else
#define PDSSM_TEST "mbarrier.test_wait.parity.shared.b64"
#endif
  unsigned done;
  do {
    asm volatile("{\n .reg .pred p;\n " PDSSM_TEST
                 " p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(lane_shared(barrier)), "r"(parity)
                 : "memory");
  } while (!done);
}

// Waits for every copy this thread has started.
__device__ __forceinline__ void lane_copies_done() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// Makes a group of the copies this thread has started since the last one.
__device__ __forceinline__ void lane_copies_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for every group but the last.
__device__ __forceinline__ void lane_copies_but_last() {
  asm volatile("cp.async.wait_group 1;" ::: "memory");
}
