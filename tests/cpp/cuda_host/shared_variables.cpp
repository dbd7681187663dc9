// SPDX-License-Identifier: MIT

#include "shared_variables.h"

#include <elf.h>
#include <link.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

namespace cuda_host {
namespace {

// The program, or the library, that this function is part of.
struct Image {
  std::string path;
  std::uintptr_t offset;  // of where it lies, against what its file says
};

Image own_image() {
  Image image;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* result) {
        const auto here = reinterpret_cast<std::uintptr_t>(&own_image);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          const std::uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
          if (segment.p_type != PT_LOAD || here < begin || here >= begin + segment.p_memsz) {
            continue;
          }
          const bool is_program = info->dlpi_name[0] == 0;
          *static_cast<Image*>(result) = {is_program ? "/proc/self/exe" : info->dlpi_name,
                                          info->dlpi_addr};
          return 1;
        }
        return 0;
      },
      &image);
  return image;
}

template <typename T>
T read(const std::vector<char>& file, std::size_t offset) {
  T value;
  if (offset + sizeof(T) > file.size()) throw std::runtime_error("the program's file is cut short");
  std::memcpy(&value, file.data() + offset, sizeof(T));
  return value;
}

}  // namespace

std::vector<SharedVariable> shared_variables() {
  const Image image = own_image();
  std::ifstream stream(image.path, std::ios::binary);
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
  std::vector<SharedVariable> found;
  for (std::size_t i = 0; i < symbols.sh_size; i += sizeof(ElfW(Sym))) {
    const auto symbol = read<ElfW(Sym)>(file, symbols.sh_offset + i);
    const char* name = file.data() + names + symbol.st_name;
    if (std::strstr(name, "B11cuda_shared") == nullptr) continue;
    const bool variable = ELF64_ST_TYPE(symbol.st_info) == STT_OBJECT;  // 32-bit ELF is the same
    if (!variable || symbol.st_shndx == SHN_UNDEF) continue;
    found.push_back(
        {reinterpret_cast<unsigned char*>(image.offset + symbol.st_value), symbol.st_size});
  }
  return found;
}

}  // namespace cuda_host
