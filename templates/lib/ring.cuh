// A ring of stages in shared memory between producers and consumers, with two mbarriers a stage.

template <int kStages>
struct Ring {
  uint32_t barriers;  // address of kStages x stage_full, then kStages x stage_free

  static constexpr int kBarrierBytes = 2 * kStages * 8;

  __device__ __forceinline__ uint32_t full(int slot) const { return barriers + slot * 8; }
  __device__ __forceinline__ uint32_t free(int slot) const { return barriers + (kStages + slot) * 8; }

  // One thread prepares the barriers; the block synchronises before anyone uses them.
  __device__ __forceinline__ void init(int full_arrivals, int free_arrivals) const {
    for (int slot = 0; slot < kStages; ++slot) {
      barrier_init(full(slot), full_arrivals);
      barrier_init(free(slot), free_arrivals);
    }
    barrier_init_done();
  }
};

// Where one side of a ring stands: the slot, and the parity of its phase.
template <int kStages>
struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ int slot_before() const { return slot == 0 ? kStages - 1 : slot - 1; }

  __device__ __forceinline__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};
