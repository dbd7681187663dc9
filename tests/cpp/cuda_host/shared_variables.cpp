// SPDX-License-Identifier: MIT

#include "shared_variables.h"

#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace cuda_host {
namespace {

// Where the program lies, against what its file says.
std::uintptr_t load_offset() {
  std::uintptr_t offset = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* result) {
        *static_cast<std::uintptr_t*>(result) = info->dlpi_addr;
        return 1;  // the program comes first, libraries follow
      },
      &offset);
  return offset;
}

template <typename T>
T read(const std::vector<char>& file, std::size_t offset) {
  T value;
  if (offset + sizeof(T) > file.size()) throw std::runtime_error("/proc/self/exe is cut short");
  std::memcpy(&value, file.data() + offset, sizeof(T));
  return value;
}

}  // namespace

std::vector<SharedVariable> shared_variables() {
  std::ifstream stream("/proc/self/exe", std::ios::binary);
  const std::vector<char> file{std::istreambuf_iterator<char>(stream), {}};
  const auto header = read<ElfW(Ehdr)>(file, 0);
  const auto section = [&](std::size_t index) {
    return read<ElfW(Shdr)>(file, header.e_shoff + index * header.e_shentsize);
  };
  ElfW(Shdr) symbols = {};
  for (std::size_t i = 0; i < header.e_shnum; ++i) {
    if (section(i).sh_type == SHT_SYMTAB) symbols = section(i);
  }
  if (symbols.sh_size == 0) {
    throw std::runtime_error("no symbol table to find __shared__ variables in: do not strip");
  }
  const std::size_t names = section(symbols.sh_link).sh_offset;
  const std::uintptr_t offset = load_offset();
  std::vector<SharedVariable> found;
  for (std::size_t i = 0; i < symbols.sh_size; i += sizeof(ElfW(Sym))) {
    const auto symbol = read<ElfW(Sym)>(file, symbols.sh_offset + i);
    const char* name = file.data() + names + symbol.st_name;
    if (std::strstr(name, "B11cuda_shared") == nullptr) continue;
    const bool variable = ELF64_ST_TYPE(symbol.st_info) == STT_OBJECT;  // 32-bit ELF is the same
    if (!variable || symbol.st_shndx == SHN_UNDEF) continue;
    found.push_back({reinterpret_cast<unsigned char*>(offset + symbol.st_value), symbol.st_size});
  }
  return found;
}

}  // namespace cuda_host
