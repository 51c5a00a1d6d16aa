// Grouped GEMMs over experts: the pieces of work of a block, how their weights and tokens come into the ring, and the
// rows that their results go to.
//
// A piece is kRows rows of an expert times the slots of one tile (moe_schedule). Gate-up gathers the rows of tokens
// with 16-byte copies of all producer threads, which write the swizzle of wgmma themselves; down's rows stand in the
// order of the tiles, and a tensor map brings them in boxes of kStep.
//
// Config gives: Weights (the format), Token (an element of the tokens: bf16, or uint8_t for E4M3), kIsDown, kConsumers,
// kTokens, kStep, kBlockK, kStages, kThreads.

// One piece of work but for its rows.
struct Work {
  int expert;
  int position;   // of the tile's first slot
  int count;      // slots
};

// All pieces of work, the rows of a tile one after the other, so that blocks side by side share its tokens in L2. A
// block takes every gridDim.x-th; without persistence there are as many blocks as there can be pieces.
template <class Config>
struct WorkList {
  static constexpr int kRows = Config::kConsumers * kRowBlock;

  const int4* tiles;
  int row_groups;  // pieces of a tile
  int end;

  // Beyond the end any will do.
  __device__ __forceinline__ Work at(int item) const {
    const int4 tile = tiles[smaller(item, end - 1) / row_groups];
    return {tile.x, tile.y, tile.z};
  }

  __device__ __forceinline__ int first_row(int item) const { return item % row_groups * kRows; }
};

// The pieces of a block as a warp walks through them: 32 at a time, one a lane, so that only one in 32 is waited for.
template <class Config>
struct Pieces {
  const WorkList<Config>& list;
  int lane;
  int index;  // of the current piece among the lanes'
  Work of_lane;

  __device__ __forceinline__ Pieces(const WorkList<Config>& list, int lane) : list(list), lane(lane), index(0) {
    of_lane = list.at(blockIdx.x + lane * gridDim.x);
  }

  // The current piece, the same in all lanes.
  __device__ __forceinline__ Work current() const {
    return {__shfl_sync(~0u, of_lane.expert, index), __shfl_sync(~0u, of_lane.position, index),
            __shfl_sync(~0u, of_lane.count, index)};
  }

  // Goes on to the next one; `item` is its number.
  __device__ __forceinline__ void advance(int item) {
    index = (index + 1) % 32;
    if (index == 0) of_lane = list.at(item + lane * gridDim.x);
  }
};

// What all pieces have in common along n and k.
struct Extent {
  int row_blocks;  // blocks of 64 rows of an expert
  int n_slabs;
  int n_stages;
  int k_end;
};

// Rows that one producer thread gathers: piece `thread % 8` of every (kProducers / 8)-th token. Columns beyond the
// count keep whatever the stage held: their products are not stored.
template <class Config>
struct GatheredRows {
  using Token = typename Config::Token;
  static constexpr int kProducers = Config::kThreads - Config::kConsumers * 128;
  static constexpr int kPieceK = 16 / sizeof(Token);
  static constexpr int kBoxK = 128 / sizeof(Token);
  static constexpr int kPasses = ceil_divide(Config::kTokens * 8, kProducers);
  static constexpr int kPassTokens = kProducers / 8;
  static_assert(Config::kIsDown || kPassTokens % 8 == 0, "the swizzle is the same in every pass");
  uint32_t at[kPasses];  // slots first, then where the thread's pieces are, in units of 16 bytes

  // Nothing waits for the slots before `resolve`.
  __device__ __forceinline__ void fetch(const Work& work, const int* slot_of, int thread) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int token = thread / 8 + pass * kPassTokens;
      at[pass] = token < work.count ? slot_of[work.position + token] : 0;
    }
  }

  __device__ __forceinline__ void resolve(int top_k, int64_t ld, int thread) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      at[pass] = at[pass] / top_k * static_cast<uint32_t>(ld / kPieceK) + thread % 8;
    }
  }

  __device__ __forceinline__ void copy(const Work& work, const Token* from, int k, int k_end, uint32_t stage,
                                       int thread) const {
    constexpr int kBoxes = Config::kBlockK / kBoxK;
    const int row = thread / 8;
    // The 128-byte swizzle of wgmma: piece p of row r stands at place p ^ (r % 8).
    const uint32_t to = stage + row * 128 + ((thread ^ row) % 8 * 16);
    const uint4* box_from[kBoxes];
    int bytes[kBoxes];
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
      const bool is_there = k + box * kBoxK + thread % 8 * kPieceK < k_end;
      box_from[box] = reinterpret_cast<const uint4*>(from + (is_there ? k + box * kBoxK : 0));
      bytes[box] = is_there ? 16 : 0;
    }
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (row + pass * kPassTokens >= work.count) break;
#pragma unroll
      for (int box = 0; box < kBoxes; ++box) {
        const uint32_t place = to + pass * kPassTokens * 128 + box * Stage<Config>::kBoxBytes;
        copy_async_16_or_zeros(place, box_from[box] + at[pass], bytes[box]);
      }
    }
  }
};

// Gate-up: all producer threads gather, the first also brings the weights. A slot of the ring is free from the start.
template <class Config>
__device__ __forceinline__ void produce_gathered(const WorkList<Config>& list, const Extent& extent,
                                                 const uint8_t* weights, const typename Config::Token* from, int64_t ld,
                                                 const int* slot_of, int top_k, uint32_t stages,
                                                 Ring<Config::kStages> ring, int thread) {
  RingPosition<Config::kStages> position;
  Pieces<Config> pieces(list, thread % 32);
  for (int item = blockIdx.x; item < list.end; item += gridDim.x) {
    const Work work = pieces.current();
    const int first_row = list.first_row(item);
    pieces.advance(item + gridDim.x);
    const PackedMatrix matrix{weights, work.expert, extent.row_blocks, extent.n_slabs};
    GatheredRows<Config> rows;
    rows.fetch(work, slot_of, thread);
    for (int i = 0; i < extent.n_stages; ++i) {
      barrier_wait(ring.free(position.slot), position.parity ^ 1);
      if (i == 0) rows.resolve(top_k, ld, thread);
      const uint32_t stage = stages + position.slot * Stage<Config>::kBytes;
      if (thread == 0) {
        barrier_arrive_and_expect(ring.full(position.slot), Config::kConsumers * Stage<Config>::kWeightBytes);
        matrix.copy_stage<Config>(first_row, i * Stage<Config>::kSlabs, stage, ring.full(position.slot));
      }
      rows.copy(work, from, i * Config::kBlockK, extent.k_end, stage, thread);
      barrier_arrive_after_copies(ring.full(position.slot));
      position.advance();
    }
  }
  wait_copies<0>();
}

// Down: one thread of each producer warp brings its share of the rows, in boxes of kStep, and the first the weights.
// Each arrives in every stage, with or without a share: one that did not might miss a turn of the ring and stay behind.
template <class Config>
__device__ __forceinline__ void produce_in_order(const WorkList<Config>& list, const Extent& extent,
                                                 const uint8_t* weights, const TensorMap* from, uint32_t stages,
                                                 Ring<Config::kStages> ring, int producer) {
  constexpr int kBoxK = 128 / sizeof(typename Config::Token);
  constexpr int kProducerWarps = Config::kThreads / 32 - Config::kConsumers * 4;
  RingPosition<Config::kStages> position;
  Work next = list.at(blockIdx.x);
  for (int item = blockIdx.x; item < list.end; item += gridDim.x) {
    const Work work = next;
    const int first_row = list.first_row(item);
    next = list.at(item + gridDim.x);
    const PackedMatrix matrix{weights, work.expert, extent.row_blocks, extent.n_slabs};
    const int n_parts = ceil_divide(work.count, Config::kStep);
    const int n_own = ceil_divide(n_parts - producer, kProducerWarps);
    const int own_bytes = n_own * (Config::kStep * Config::kBlockK * sizeof(typename Config::Token)) +
                          (producer == 0 ? Config::kConsumers * Stage<Config>::kWeightBytes : 0);
    for (int i = 0; i < extent.n_stages; ++i) {
      barrier_wait(ring.free(position.slot), position.parity ^ 1);
      const uint32_t stage = stages + position.slot * Stage<Config>::kBytes;
      const uint32_t full = ring.full(position.slot);
      barrier_arrive_and_expect(full, own_bytes);
      if (producer == 0) matrix.copy_stage<Config>(first_row, i * Stage<Config>::kSlabs, stage, full);
      // The swizzle repeats every 1,024 bytes, so boxes laid end to end are one wider box.
      for (int part = producer; part < n_parts; part += kProducerWarps) {
#pragma unroll
        for (int box = 0; box < Config::kBlockK / kBoxK; ++box) {
          copy_box(stage + box * Stage<Config>::kBoxBytes + part * (Config::kStep * 128), from,
                   i * Config::kBlockK + box * kBoxK, work.position + part * Config::kStep, 0, full);
        }
      }
      position.advance();
    }
  }
}

// Rows of H for the positions of a tile.
struct HiddenRows {
  bf16* h;
  int64_t ld;
  int count;
  __device__ __forceinline__ bf16* row(int token) const { return h + token * ld; }
  __device__ __forceinline__ float factor(int) const { return 1.0f; }
};
