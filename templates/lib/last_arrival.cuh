// Blocks that share a tile count their arrivals; the last one finds everything that the others wrote.

// Whether this block is the last of `n_blocks`. Called by every thread that wrote, after its writes; `sync` joins them.
// The ticket is back at zero afterwards, so nothing needs to be cleared between launches.
template <class Sync>
__device__ __forceinline__ bool is_last_arrival(unsigned* ticket, unsigned n_blocks, unsigned* shared_flag,
                                                bool is_leader, Sync sync) {
  __threadfence();
  sync();
  if (is_leader) {
    const unsigned arrived = atomicAdd(ticket, 1u);
    *shared_flag = arrived == n_blocks - 1;
    if (arrived == n_blocks - 1) *ticket = 0;
  }
  sync();
  const bool is_last = *shared_flag != 0;
  if (is_last) __threadfence();
  return is_last;
}
