// The arrays that say what a step is: how many tokens, where each stands, of which sequence it is. Only the host writes
// them, and templates/advance, which lets nobody start before it has ended. So a kernel of a step may ask for them
// before it waits for the launch ahead, and behind its wait one way to memory is left where there were two or three.
//
// Past the L1, which an SM may have kept from the step before.
__device__ __forceinline__ int of_step(const int* array, int idx) { return __ldcg(array + idx); }
