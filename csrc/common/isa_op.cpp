// SPDX-License-Identifier: MIT
//
// Lets Python ask which CPU variants there are and which one runs.

#include <string>

#include "common/isa.h"
#include "common/torch_stable.h"

namespace groupedmixer {
namespace {

std::string isa_names_op() { return isa_names(" "); }

int64_t active_isa_op() { return static_cast<int64_t>(active_isa()); }

bool isa_available_op(int64_t isa) { return isa_available(static_cast<Isa>(isa)); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(groupedmixer, CompositeExplicitAutograd, m) {
  m.impl("isa_names", TORCH_BOX(&isa_names_op));
  m.impl("active_isa", TORCH_BOX(&active_isa_op));
  m.impl("isa_available", TORCH_BOX(&isa_available_op));
}

}  // namespace groupedmixer
