// The division of a batch into chunks for the threads.
#include "driver/staging.h"

namespace xentropy {
namespace {

// A chunk is the unit of work of a thread: large enough to pay for its scheduling (about 20 us),
// small enough to balance the load, with enough rows to fill the pipeline of the row kernel.
constexpr size_t kChunkElements = size_t(1) << 16;
constexpr size_t kMaxChunkElements = size_t(1) << 20;
constexpr size_t kChunksWanted = 64;

}  // namespace

size_t chunk_rows(size_t rows, size_t classes) {
  const size_t least = kChunkElements / classes, most = kMaxChunkElements / classes;
  size_t wanted = rows / kChunksWanted;
  if (wanted > most) wanted = most;
  if (wanted < least) wanted = least;
  return wanted ? smaller(wanted, kBlockRows) : 1;
}

}  // namespace xentropy
