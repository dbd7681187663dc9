// SPDX-License-Identifier: MIT
//
// groupedmixer_ext._rans: the coder for Python, without torch. groupedmixer_ext/rans.py is its
// public face and words the errors about types and shapes; what is checked here is what memory
// safety needs.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "entropy/module_arrays.h"
#include "entropy/rans.h"
#include "entropy/stream_error.h"

namespace py = pybind11;
using groupedmixer::entropy::Array;
using groupedmixer::entropy::Decoder;
using groupedmixer::entropy::Encoder;
using groupedmixer::entropy::Lease;
using groupedmixer::entropy::require_same_size;
using groupedmixer::entropy::shape_of;
using groupedmixer::entropy::StreamError;
using groupedmixer::entropy::Tables;

namespace {

Tables make_tables(const Array<uint16_t>& counts,    // [sum(sizes)]
                   const Array<int32_t>& sizes,      // [T]
                   const Array<int32_t>& offsets) {  // [T]
  require_same_size(sizes.size(), offsets.size(), "sizes and offsets");
  return Tables(counts.data(), counts.size(), sizes.data(), offsets.data(), sizes.size());
}

class PyEncoder {
 public:
  template <typename Index>
  void push(const Array<int16_t>& symbols,  // any shape
            const Array<Index>& indexes,    // as symbols
            const Tables& tables, int64_t skip_below) {
    require_same_size(symbols.size(), indexes.size(), "symbols and indexes");
    const Lease lease(busy_);
    const int16_t* symbol_data = symbols.data();
    const Index* index_data = indexes.data();
    const int64_t count = symbols.size();
    const py::gil_scoped_release unlocked;
    encoder_.push(symbol_data, index_data, count, tables, skip_below);
  }

  py::bytes finish(int lanes) {
    const Lease lease(busy_);
    std::vector<uint8_t> stream;
    {
      const py::gil_scoped_release unlocked;
      stream = encoder_.finish(lanes);
    }
    return py::bytes(reinterpret_cast<const char*>(stream.data()), stream.size());
  }

  double estimated_bits() {
    const Lease lease(busy_);
    return encoder_.estimated_bits();
  }

  size_t num_coded() {
    const Lease lease(busy_);
    return encoder_.num_coded();
  }

  size_t num_escaped() {
    const Lease lease(busy_);
    return encoder_.num_escaped();
  }

 private:
  Encoder encoder_;
  std::atomic<bool> busy_{false};
};

class PyDecoder {
 public:
  // Copies the stream: the caller's buffer may change or go away between two groups.
  explicit PyDecoder(std::string data) : data_(std::move(data)), decoder_(bytes(), data_.size()) {}

  int lanes() const { return decoder_.lanes(); }

  template <typename Index>
  py::array_t<int16_t> pop(const Array<Index>& indexes,  // any shape; the result's as well
                           const Tables& tables, int64_t skip_below) {
    const Lease lease(busy_);
    py::array_t<int16_t> symbols(shape_of(indexes));
    const Index* index_data = indexes.data();
    int16_t* symbol_data = symbols.mutable_data();
    const int64_t count = indexes.size();
    {
      const py::gil_scoped_release unlocked;
      decoder_.pop(index_data, count, tables, skip_below, symbol_data);
    }
    return symbols;
  }

  void finish() {
    const Lease lease(busy_);
    decoder_.finish();
  }

 private:
  const uint8_t* bytes() const { return reinterpret_cast<const uint8_t*>(data_.data()); }

  const std::string data_;
  Decoder decoder_;
  std::atomic<bool> busy_{false};
};

}  // namespace

PYBIND11_MODULE(_rans, m) {
  m.doc() = "The rANS coder; use it through groupedmixer_ext.rans.";
  py::register_exception<StreamError>(m, "RansError", PyExc_ValueError);

  py::class_<Tables>(m, "Tables")
      .def(py::init(&make_tables), py::arg("counts").noconvert(), py::arg("sizes").noconvert(),
           py::arg("offsets").noconvert())
      .def("__len__", &Tables::size);

  py::class_<PyEncoder>(m, "Encoder")
      .def(py::init<>())
      .def("push", &PyEncoder::push<uint8_t>, py::arg("symbols").noconvert(),
           py::arg("indexes").noconvert(), py::arg("tables"), py::arg("skip_below"))
      .def("push", &PyEncoder::push<uint16_t>, py::arg("symbols").noconvert(),
           py::arg("indexes").noconvert(), py::arg("tables"), py::arg("skip_below"))
      .def("finish", &PyEncoder::finish, py::arg("lanes"))
      .def_property_readonly("estimated_bits", &PyEncoder::estimated_bits)
      .def_property_readonly("num_coded", &PyEncoder::num_coded)
      .def_property_readonly("num_escaped", &PyEncoder::num_escaped);

  py::class_<PyDecoder>(m, "Decoder")
      .def(py::init([](const py::bytes& data) {
             return std::make_unique<PyDecoder>(static_cast<std::string>(data));
           }),
           py::arg("data"))
      .def_property_readonly("lanes", &PyDecoder::lanes)
      .def("pop", &PyDecoder::pop<uint8_t>, py::arg("indexes").noconvert(), py::arg("tables"),
           py::arg("skip_below"))
      .def("pop", &PyDecoder::pop<uint16_t>, py::arg("indexes").noconvert(), py::arg("tables"),
           py::arg("skip_below"))
      .def("finish", &PyDecoder::finish);
}
