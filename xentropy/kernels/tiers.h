// The switchboard: which tiers there are, which this machine can run, which is in use.
#pragma once
#include "tier.h"

namespace xentropy {

int tier_count();  // compiled in, ascending
const Tier& tier_at(int index);
bool tier_supported(int index);  // by the CPU and the operating system

}  // namespace xentropy
