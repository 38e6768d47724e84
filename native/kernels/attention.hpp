// Attention of a few query rows over paged banks. Included by isa_*.cpp.
//
// One lane is one key's score: no sum crosses lanes but the softmax's own. Online softmax over
// blocks: Milakov and Gimelshein, arXiv:1805.02867.

constexpr int kMaxHeadDim = 256;
constexpr int kBanksPerPartition = kPartition / kBankSize;

inline const uint16_t* keys_of(const AttentionTask& task, int bank) {
  return reinterpret_cast<const uint16_t*>(
      task.slices + slice_offset(task.banks[bank], task.head_dim, task.group_bytes));
}
inline const uint16_t* values_of(const AttentionTask& task, int bank) {
  return keys_of(task, bank) + static_cast<size_t>(kBankSize) * task.head_dim;
}

struct PartitionScores {
  alignas(64) float weight[kMaxQueryRows][kPartition];
};

// Scores of R rows, whose queries lie as [dimension][R], against one bank: 32 keys, two lane
// groups.
template <int R>
inline void score_bank(const float* queries, const uint16_t* keys, const uint16_t* next_keys,
                       const uint16_t* values, int head_dim, float (*scores)[kPartition],
                       int column) {
  F acc[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = zero();
  const uint16_t* next = keys + 16 * head_dim;
  for (int d = 0; d < head_dim; ++d) {
    __builtin_prefetch(next_keys + 32 * d);
    __builtin_prefetch(values + 32 * d);
    const F k0 = load_half(keys + 16 * d), k1 = load_half(next + 16 * d);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const F q = broadcast(queries[d * R + r]);
      acc[r][0] = fma(q, k0, acc[r][0]);
      acc[r][1] = fma(q, k1, acc[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    store(scores[r] + column, acc[r][0]);
    store(scores[r] + column + 16, acc[r][1]);
  }
}

// Scores become weights in place; keys from `visible` on weigh exactly zero.
inline void soften(float* scores, int num_columns, int visible, float* max_out, float* sum_out) {
  const float none = -__builtin_inff();
  F most = broadcast(none);
  for (int i = 0; i < num_columns; i += 16) {
    const int n = visible - i < 0 ? 0 : visible - i > 16 ? 16 : visible - i;
    const F s = first(load(scores + i), n, none);
    store(scores + i, s);
    most = max(s, most);
  }
  const float top = greatest(most);
  F total = zero();
  for (int i = 0; i < num_columns; i += 16) {
    const F w = softmax_weight(sub(load(scores + i), broadcast(top)));
    store(scores + i, w);
    total = add(total, w);
  }
  *max_out = top;
  *sum_out = sum(total);
}

// Which keys of one partition R rows may see; all counts are from the partition's first key.
template <int R>
struct Part {
  int visible[R];
  int num_keys;    // seen by some row
  int num_common;  // seen by every row
  int first_bank;  // of the partition
  int final_bank;  // of all that the rows may see
};

template <int R>
inline Part<R> part_of(const AttentionTask& task, int row, int partition) {
  const int start = partition * kPartition;
  Part<R> part;
  int most = 0, least = kPartition;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const int n = task.visible[row + r] - start;
    part.visible[r] = n;
    most = n > most ? n : most;
    least = n < least ? n : least;
  }
  part.num_keys = most < kPartition ? most : kPartition;
  part.num_common = least > 0 ? least : 0;
  part.first_bank = start / kBankSize;
  part.final_bank = (start + most - 1) / kBankSize;
  return part;
}

// C x 16 dimensions of R rows' weighted values over the partition's keys, ascending. A row never
// touches a key that it may not see: zero times a broken neighbour's NaN would be NaN.
template <int R, int C>
inline void gather_values(const float (*weights)[kPartition], const AttentionTask& task,
                          const Part<R>& part, int from, float (*out)[kMaxHeadDim]) {
  const int head_dim = task.head_dim;
  F acc[R][C];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) acc[r][c] = zero();
  }
  for (int first_key = 0; first_key < part.num_keys; first_key += kBankSize) {
    const int bank = part.first_bank + first_key / kBankSize;
    const uint16_t* values = values_of(task, bank) + from;
    const int later = bank + kBanksPerPartition;
    const uint16_t* ahead = keys_of(task, later < part.final_bank ? later : part.final_bank) + from;
    const int last_key = first_key + kBankSize;
    const int end = part.num_keys < last_key ? part.num_keys : last_key;
    const int common = part.num_common < end ? part.num_common : end;
    int key = first_key;
    for (; key < common; ++key, values += head_dim, ahead += head_dim) {
#pragma GCC unroll 2
      for (int c = 0; c < C; c += 2) __builtin_prefetch(ahead + 16 * c);
      F v[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) v[c] = load_half(values + 16 * c);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const F w = broadcast(weights[r][key]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) acc[r][c] = fma(w, v[c], acc[r][c]);
      }
    }
    for (; key < end; ++key, values += head_dim) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        if (key >= part.visible[r]) continue;
        const F w = broadcast(weights[r][key]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) acc[r][c] = fma(w, load_half(values + 16 * c), acc[r][c]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) store(out[r] + from + 16 * c, acc[r][c]);
  }
}

// State of one row: [head_dim] weighted values, max, sum.
inline void merge_state(float* into, const float* values, float from_max, float from_sum,
                        int head_dim) {
  const float old_max = into[head_dim], old_sum = into[head_dim + 1];
  const float top = from_max > old_max ? from_max : old_max;
  const F a = softmax_weight(broadcast(old_max - top));
  const F b = softmax_weight(broadcast(from_max - top));
  for (int d = 0; d < head_dim; d += 16) {
    store(into + d, fma(load(into + d), a, mul(load(values + d), b)));
  }
  const F total = fma(broadcast(old_sum), a, mul(broadcast(from_sum), b));
  float lanes[16];
  store(lanes, total);
  into[head_dim] = top;
  into[head_dim + 1] = lanes[0];
}

void merge(float* into, const float* from, int head_dim) {
  merge_state(into, from, from[head_dim], from[head_dim + 1], head_dim);
}

void finish(const float* state, int head_dim, float* out) {
  const F inverse = broadcast(1.0f / state[head_dim + 1]);
  for (int d = 0; d < head_dim; d += 16) store(out + d, mul(load(state + d), inverse));
}

template <int R>
inline void attend_partition(const AttentionTask& task, int row, int partition,
                             const float* queries, PartitionScores& scores) {
  const Part<R> part = part_of<R>(task, row, partition);
  if (part.num_keys <= 0) return;
  const int last_bank = part.first_bank + (part.num_keys - 1) / kBankSize;
  int columns = 0;
  for (int bank = part.first_bank; bank <= last_bank; ++bank, columns += kBankSize) {
    // While keys are read, this bank's values and the next bank's keys are on their way; while
    // values are read, the next partition's keys.
    const uint16_t* next_keys = keys_of(task, bank < last_bank ? bank + 1 : bank);
    score_bank<R>(queries, keys_of(task, bank), next_keys, values_of(task, bank), task.head_dim,
                  scores.weight, columns);
  }
  float most[R], total[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    soften(scores.weight[r], columns, part.visible[r], &most[r], &total[r]);
  }
  alignas(64) float values[R][kMaxHeadDim];
  constexpr int C = R <= 6 ? 4 : 2;
  int d = 0;
  for (; d + 16 * C <= task.head_dim; d += 16 * C) {
    gather_values<R, C>(scores.weight, task, part, d, values);
  }
  for (; d < task.head_dim; d += 16) gather_values<R, 1>(scores.weight, task, part, d, values);
  for (int r = 0; r < R; ++r) {
    if (part.visible[r] <= 0) continue;
    float* state = task.state[row + r];
    if (partition == task.first_partition) {
      __builtin_memcpy(state, values[r], sizeof(float) * task.head_dim);
      state[task.head_dim] = most[r];
      state[task.head_dim + 1] = total[r];
    } else {
      merge_state(state, values[r], most[r], total[r], task.head_dim);
    }
  }
}

template <int R>
void attend_rows(const AttentionTask& task, int row) {
  PartitionScores scores;
  // Queries as [dimension][R]: one base address for all rows of the inner loop.
  alignas(64) float queries[kMaxHeadDim * R];
  for (int r = 0; r < R; ++r) {
    for (int d = 0; d < task.head_dim; ++d) queries[d * R + r] = task.query[row + r][d];
  }
  for (int p = 0; p < task.num_partitions; ++p) {
    attend_partition<R>(task, row, task.first_partition + p, queries, scores);
  }
}

using AttendRows = void (*)(const AttentionTask&, int);
constexpr AttendRows kAttendRows[kMaxQueryRows] = {
    attend_rows<1>, attend_rows<2>,  attend_rows<3>,  attend_rows<4>,
    attend_rows<5>, attend_rows<6>,  attend_rows<7>,  attend_rows<8>,
    attend_rows<9>, attend_rows<10>, attend_rows<11>, attend_rows<12>};

void attend(const AttentionTask& task) {
  for (int row = 0; row < task.num_rows; row += kQueryRows) {
    const int n = task.num_rows - row < kQueryRows ? task.num_rows - row : kQueryRows;
    kAttendRows[n - 1](task, row);
  }
}
