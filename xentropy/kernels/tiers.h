// The tiers that are compiled in, and which of them this machine can run.
#pragma once
#include "tier.h"

namespace xentropy {

int tier_count();  // compiled in, ascending
const Tier& tier_at(int index);
bool tier_supported(int index);  // by the CPU and the operating system

}  // namespace xentropy
