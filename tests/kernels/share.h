// The chunks of a call, shared by threads as those of _threads.pxi share them.
#pragma once
#include <atomic>
#include <thread>

#include "batch.h"

constexpr int kThreads = 3;

template <class Call>
size_t rows_of(const Call& call) {
  return call.rows;
}
inline size_t rows_of(const DistillationCall& call) { return call.rows.rows; }
inline size_t rows_of(const StatisticsCall& call) { return call.rows.rows; }
inline size_t rows_of(const LogProbGradientCall& call) { return call.rows.rows; }

// Calls work(thread) on every thread.
template <class Work>
void on_threads(size_t threads, const Work& work) {
  std::vector<std::thread> team;
  for (size_t t = 1; t < threads; ++t) team.emplace_back(work, t);
  work(0);
  for (std::thread& t : team) t.join();
}

// Processes all chunks of a call on `threads` threads: work(chunk, begin, end, workspace).
template <class Call, class Work>
void share(const Tier& tier, const Call& call, size_t classes, size_t threads, const Work& work) {
  const size_t rows = rows_of(call), each_chunk = chunk_rows(rows, classes);
  const size_t chunks = (rows + each_chunk - 1) / each_chunk, each = workspace_bytes(tier, call);
  const Array<char> scratch(threads * each + 1, 0);
  std::atomic<size_t> next{0};
  on_threads(threads, [&](size_t thread) {
    for (size_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      const size_t begin = chunk * each_chunk, end = begin + each_chunk;
      work(chunk, begin, end < rows ? end : rows, scratch.data() + thread * each);
    }
  });
}
