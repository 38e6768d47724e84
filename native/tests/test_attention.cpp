// Attention over paged banks: against the definition, and in one go against partition by partition.
#include <cmath>
#include <numeric>
#include <vector>

#include "check.hpp"
#include "definition.hpp"
#include "kernels.hpp"

namespace headrace::tests {
namespace {

constexpr uint16_t kHalfNan = 0x7E00;

// A sequence's keys and values in a pool of banks, in shuffled order. Whatever no position holds is
// NaN: a kernel that lets it into a sum fails.
struct Pool {
  definition::History history;
  std::vector<uint16_t> keys, values;
  std::vector<uint8_t> slices;
  size_t group_bytes;
  std::vector<int32_t> banks;

  Pool(int head_dim, int num_keys, float scale, Random& random) {
    history.head_dim = head_dim;
    for (int i = 0; i < num_keys * head_dim; ++i) {
      keys.push_back(definition::half_bits(random.normal() * scale, true));
      values.push_back(definition::half_bits(random.normal(), true));
      history.keys.push_back(definition::half_value(keys.back()));
      history.values.push_back(definition::half_value(values.back()));
    }
    const int num_banks = (num_keys + kBankSize - 1) / kBankSize;
    banks.resize(num_banks);
    std::iota(banks.begin(), banks.end(), 0);
    for (int i = num_banks - 1; i > 0; --i) std::swap(banks[i], banks[random.below(i + 1)]);
    // Groups of banks lie apart, as those of a layer and head among many do.
    group_bytes = 2 * kGroupBanks * slice_bytes(head_dim);
    slices.resize((num_banks / kGroupBanks + 1) * group_bytes);
    auto* halves = reinterpret_cast<uint16_t*>(slices.data());
    std::fill(halves, halves + slices.size() / 2, kHalfNan);
    for (int p = 0; p < num_keys; ++p) put(p);
  }

  void put(int position) {
    const int dim = history.head_dim, slot = position % kBankSize;
    auto* bank = reinterpret_cast<uint16_t*>(
        slices.data() + slice_offset(banks[position / kBankSize], dim, group_bytes));
    for (int d = 0; d < dim; ++d) {
      const size_t from = static_cast<size_t>(position) * dim + d;
      bank[(slot / 16 * dim + d) * 16 + slot % 16] = keys[from];
      bank[(kBankSize + slot) * dim + d] = values[from];
    }
  }
};

// Rows of one attention call and where their states go.
struct Rows {
  std::vector<std::vector<float>> queries, states;
  AttentionTask task = {};

  Rows(const Pool& pool, const std::vector<int>& visible, float scale, Random& random) {
    const int dim = pool.history.head_dim;
    task.num_rows = static_cast<int>(visible.size());
    task.head_dim = dim;
    task.slices = pool.slices.data();
    task.group_bytes = pool.group_bytes;
    task.banks = pool.banks.data();
    for (const int v : visible) {
      const int row = static_cast<int>(queries.size());
      queries.push_back(random.normals(dim, scale));
      task.visible[row] = v;
    }
    states.resize(visible.size());
  }

  // States of [head_dim + 2], with a guard behind them.
  void run(const Kernels& kernels, int first_partition, int num_partitions) {
    task.first_partition = first_partition;
    task.num_partitions = num_partitions;
    for (int row = 0; row < task.num_rows; ++row) {
      states[row].assign(task.head_dim + 3, 99.0f);
      task.query[row] = queries[row].data();
      task.state[row] = states[row].data();
    }
    kernels.attend(task);
    for (const auto& state : states) CHECK(state.back() == 99.0f);
  }
};

std::vector<float> flat(const definition::State& state) {
  std::vector<float> out = state.values;
  out.push_back(state.max);
  out.push_back(state.sum);
  return out;
}

int partitions(const std::vector<int>& visible) {
  return (*std::max_element(visible.begin(), visible.end()) + kPartition - 1) / kPartition;
}

using States = std::vector<definition::State>;

void check_whole(const Kernels& kernels, const Pool& pool, Rows& rows,
                 const std::vector<int>& visible, const States& expected) {
  const int dim = pool.history.head_dim;
  rows.run(kernels, 0, partitions(visible));
  for (size_t row = 0; row < visible.size(); ++row) {
    CHECK_SAME(rows.states[row].data(), flat(expected[row]).data(), dim + 2, kernels.name,
               "head_dim", dim, "rows", visible.size(), "row", row, "visible", visible[row]);
    std::vector<float> out(dim);
    kernels.finish(rows.states[row].data(), dim, out.data());
    CHECK_SAME(out.data(), definition::finish(expected[row]).data(), dim, kernels.name, "finish");
  }
}

// What a lone token does: one call a partition, then merges in ascending order.
void check_split(const Kernels& kernels, const Pool& pool, Rows& rows,
                 const std::vector<int>& visible) {
  const int dim = pool.history.head_dim;
  rows.run(kernels, 0, partitions(visible));
  const auto whole = rows.states;
  rows.run(kernels, 0, 1);
  auto merged = rows.states;
  for (int p = 1; p < partitions(visible); ++p) {
    rows.run(kernels, p, 1);
    for (size_t row = 0; row < visible.size(); ++row) {
      if (visible[row] > p * kPartition) {
        kernels.merge(merged[row].data(), rows.states[row].data(), dim);
      } else {
        CHECK(rows.states[row][0] == 99.0f);  // saw nothing, wrote nothing
      }
    }
  }
  for (size_t row = 0; row < visible.size(); ++row) {
    CHECK_SAME(merged[row].data(), whole[row].data(), dim + 2, kernels.name, "split, head_dim", dim,
               "row", row, "visible", visible[row]);
  }
}

void check(int head_dim, const std::vector<int>& visible, float scale, Random& random) {
  const Pool pool(head_dim, *std::max_element(visible.begin(), visible.end()), scale, random);
  Rows rows(pool, visible, scale, random);
  States expected;
  for (size_t row = 0; row < visible.size(); ++row) {
    expected.push_back(definition::attend(pool.history, rows.queries[row].data(), visible[row]));
  }
  for_each_isa([&](const Kernels& kernels) {
    check_whole(kernels, pool, rows, visible, expected);
    check_split(kernels, pool, rows, visible);
  });
}

const std::vector<int> kHeadDims = {16, 32, 64, 80, 96, 128, 256};

}  // namespace

HEADRACE_TEST(attention_of_every_number_of_rows) {
  Random random(20);
  for (const int head_dim : kHeadDims) {
    for (int rows = 1; rows <= kMaxQueryRows; ++rows) {
      if (quick() && rows % 4 != 3) continue;
      // Tokens of one prompt: each row sees one key more than the row before.
      std::vector<int> visible;
      for (int r = 0; r < rows; ++r) visible.push_back(37 + r);
      check(head_dim, visible, 0.5f, random);
    }
  }
}

HEADRACE_TEST(attention_around_boundaries) {
  Random random(21);
  for (const int head_dim : quick() ? std::vector<int>{80} : kHeadDims) {
    for (const int edge : {1, 16, 32, 256, 288, 512}) {
      for (const int visible : {edge - 1, edge, edge + 1}) {
        if (visible > 0) check(head_dim, {visible}, 0.5f, random);
      }
    }
    check(head_dim, {255, 255, 256, 256, 257, 257}, 0.5f, random);
    check(head_dim, {511, 512, 513, 514}, 0.5f, random);
  }
}

// Rows that see very different numbers of keys: what a row does not see leaves no trace.
HEADRACE_TEST(attention_rows_do_not_see_each_other) {
  Random random(22);
  for (const int head_dim : quick() ? std::vector<int>{64} : kHeadDims) {
    check(head_dim, {1, 700, 2, 300, 16, 257, 33}, 0.5f, random);
    check(head_dim, {700, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, 0.5f, random);
  }
}

// Scores so far apart that most weights vanish, and partitions whose greatest score is far below.
HEADRACE_TEST(attention_of_steep_scores) {
  Random random(23);
  for (const int head_dim : {16, 64, 96}) {
    for (const float scale : {0.0f, 4.0f, 30.0f}) {
      check(head_dim, {600, 601, 602}, scale, random);
    }
  }
}

HEADRACE_TEST(attention_of_random_shapes) {
  Random random(24);
  for (int round = 0; round < (quick() ? 3 : 60); ++round) {
    std::vector<int> visible(1 + random.below(kMaxQueryRows));
    const int base = 1 + random.below(1200);
    for (int& v : visible) v = base + random.below(40);
    check(16 * (1 + random.below(16)), visible, 0.3f, random);
  }
}

// Bits that were once NaN in a bank, from its last owner, are not seen.
HEADRACE_TEST(attention_of_a_single_key_is_its_value) {
  Random random(25);
  const Pool pool(64, 1, 1.0f, random);
  Rows rows(pool, {1}, 1.0f, random);
  for_each_isa([&](const Kernels& kernels) {
    rows.run(kernels, 0, 1);
    std::vector<float> out(64);
    kernels.finish(rows.states[0].data(), 64, out.data());
    for (int d = 0; d < 64; ++d) {
      CHECK(out[d] == pool.history.values[d]);
    }
  });
}

}  // namespace headrace::tests
