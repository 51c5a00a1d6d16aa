$#-
  op: src/kernels/runner/streams.rs   arch: templates/arch/   (tokens are run-time data)
-#$
// Generated from templates/embed for ${ arch.name }$. Do not edit.
//
// embed: streams[t, j, :] = table[token_ids[t], :] for each of the four streams j.
//
//   operand    shape                 in memory               written / read
//   table      [vocabulary, hidden]  BF16, row-major         a row a token
//   token_ids  [m]                   int32                   read
//   streams    [m, 4, hidden]        Element, row-major      written
//
//   block = threads of eight columns each; grid = (column blocks, tokens); no shared memory, no barriers
//
// An id outside of the vocabulary is what a failed sampling leaves: it becomes NaN and is seen at the end of the step.
#include "lib/words.cuh"
#include "arch/bf16.cuh"
#include "arch/dependent.cuh"
#include "lib/bucket.cuh"
#include "lib/elements.cuh"

using Element = ${ op.element }$;

struct Config {
  static constexpr int kHidden = ${ op.hidden }$;
  static constexpr int kVocabulary = ${ op.vocabulary }$;
};

extern "C" __global__ void __launch_bounds__(256)
    embed(const bf16* table, const int* token_ids, Element* streams, const int* m_on_device, int m) {
  launch_dependents();
  wait_for_dependency();
  const int token = blockIdx.y;
  const int column = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (token >= actual_tokens(m_on_device, m) || column >= Config::kHidden) return;
  const int id = token_ids[token];
  float values[8];
  if (id >= 0 && id < Config::kVocabulary) {
    load_eight(values, table + int64_t{id} * Config::kHidden + column);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = no_value();
  }
  Element* to = streams + int64_t{token} * 4 * Config::kHidden + column;
#pragma unroll
  for (int j = 0; j < 4; ++j) store_eight(to + j * Config::kHidden, values);
}
