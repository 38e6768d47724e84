// Rows of bytes against one vector. Included by isa_*.cpp.

// out[i] = the dot product of row i with x. Exact, so in any order.
void scan(const int8_t* rows, size_t num_rows, const int16_t* x, int n, int32_t* out) {
  const int whole = n / kBlock * kBlock;
  for (size_t i = 0; i < num_rows; ++i) {
    const int8_t* row = rows + i * static_cast<size_t>(n);
    out[i] = dot_bytes(row, x, whole);
    for (int j = whole; j < n; ++j) out[i] += row[j] * x[j];
  }
}
