// How a batch is cut into chunks for the threads.
#include "driver/staging.h"

namespace xentropy {
namespace {

// A chunk is what one thread takes at a time: enough work to pay for the hand-out (some
// 20 us), little enough to share the batch out evenly, rows enough to keep the pipeline
// of the row kernel full.
constexpr size_t kChunkElements = size_t(1) << 16;
constexpr size_t kChunkElementsMost = size_t(1) << 20;
constexpr size_t kChunksWanted = 64;

}  // namespace

size_t chunk_rows(size_t rows, size_t classes) {
  const size_t least = kChunkElements / classes, most = kChunkElementsMost / classes;
  size_t wanted = rows / kChunksWanted;
  if (wanted > most) wanted = most;
  if (wanted < least) wanted = least;
  return wanted ? smaller(wanted, kBlockRows) : 1;
}

}  // namespace xentropy
