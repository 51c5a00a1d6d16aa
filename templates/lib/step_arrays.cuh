// The arrays that say what a step is: how many tokens, where each stands, of which sequence it is. The host writes them
// while its stream is idle, and templates/advance ends a step: behind it stands no launch of the same graph, and the
// host waits before it launches another step in a row. So a kernel of a step may ask for them before it waits for the
// launch ahead, and behind its wait one way to memory is left where there were two or three. (Two steps in one graph
// would need a full edge between them; that advance lets nobody start early is a second lock, not the first.)
//
// Past the L1, which an SM may have kept from the step before.
__device__ __forceinline__ int of_step(const int* array, int idx) { return __ldcg(array + idx); }
