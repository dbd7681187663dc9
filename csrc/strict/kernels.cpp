// SPDX-License-Identifier: MIT

#include "strict/kernels.h"

#include <stdexcept>
#include <string>

#include "common/isa.h"
#include "strict/self_test.h"

namespace groupedmixer::strict {

GROUPEDMIXER_DECLARE_VARIANTS(Kernels, strict_kernels)

const Kernels& kernels() {
  // Users build with flags of their own (-Ofast, -march=native, other compilers): what cannot be
  // exact must not code.
  static const Kernels& checked = [&]() -> const Kernels& {
    const Kernels& picked = GROUPEDMIXER_PICK_VARIANT(strict_kernels);
    const uint32_t found = self_test(picked);
    if (found != kSelfTestHash) {
      throw std::runtime_error("the " + std::string(isa_name(active_isa())) +
                               " kernels do not compute what they must (self-test " +
                               std::to_string(found) + " instead of " +
                               std::to_string(kSelfTestHash) +
                               "): groupedmixer_ext was built with compiler flags that change "
                               "floating-point arithmetic, "
                               "such as -ffast-math");
    }
    return picked;
  }();
  return checked;
}

}  // namespace groupedmixer::strict
