// SPDX-License-Identifier: MIT
//
// All __shared__ variables of the program (or library), whatever kernel they belong to. The
// stand-in declares them as static variables with a tag in their linker names, by which they are
// found again in the program's symbol table. (A section of their own would do without names, but
// GCC forgets the section of static variables in templates.)

#pragma once

#include <cstddef>
#include <vector>

// "used": code that never writes a variable must not be taken as proof that it is zero.
#define __shared__ static __attribute__((used, abi_tag("cuda_shared")))

namespace cuda_host {

struct SharedVariable {
  unsigned char* data;
  std::size_t bytes;
};

// Throws std::runtime_error if the program is stripped.
std::vector<SharedVariable> shared_variables();

}  // namespace cuda_host
