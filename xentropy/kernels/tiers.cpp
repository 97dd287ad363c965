// setup.py defines XENTROPY_TIERS: X(name) for every tier that is compiled in, in ascending order.
#include "tiers.h"

#include "cpu.h"

namespace xentropy {

#define X(name)           \
  namespace name {        \
  extern const Tier tier; \
  }
XENTROPY_TIERS
#undef X

namespace {
#define X(name) &name::tier,
const Tier* const kTiers[] = {XENTROPY_TIERS};
#undef X
}  // namespace

int tier_count() { return int(sizeof kTiers / sizeof kTiers[0]); }
const Tier& tier_at(int index) { return *kTiers[index]; }
bool tier_supported(int index) { return cpu_supports(kTiers[index]->name); }

}  // namespace xentropy
