// SPDX-License-Identifier: MIT
//
// groupedmixer_ext._compressai: compressai's entropy coding for Python, without torch.
// groupedmixer_ext/compressai_rans.py is its public face and words the errors about types and
// shapes; what is checked here is what memory safety needs.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "entropy/compressai_rans.h"
#include "entropy/module_arrays.h"
#include "entropy/scale_index.h"
#include "entropy/stream_error.h"

namespace py = pybind11;
using groupedmixer::entropy::Array;
using groupedmixer::entropy::CompressaiDecoder;
using groupedmixer::entropy::CompressaiEncoder;
using groupedmixer::entropy::CompressaiTables;
using groupedmixer::entropy::Lease;
using groupedmixer::entropy::require_same_size;
using groupedmixer::entropy::ScaleIndex;
using groupedmixer::entropy::shape_of;
using groupedmixer::entropy::StreamError;

namespace {

CompressaiTables make_tables(const Array<int32_t>& cdfs,       // [T, row]
                             const Array<int32_t>& sizes,      // [T]
                             const Array<int32_t>& offsets) {  // [T]
  if (cdfs.ndim() != 2) throw std::invalid_argument("cdfs must have 2 dimensions");
  require_same_size(cdfs.shape(0), sizes.size(), "cdfs and sizes");
  require_same_size(sizes.size(), offsets.size(), "sizes and offsets");
  return CompressaiTables(cdfs.data(), sizes.data(), offsets.data(), sizes.size(), cdfs.shape(1));
}

class PyEncoder {
 public:
  template <typename Index>
  void prepend(const Array<int32_t>& symbols,  // any shape
               const Array<Index>& indexes,    // as symbols
               const CompressaiTables& tables) {
    require_same_size(symbols.size(), indexes.size(), "symbols and indexes");
    const Lease lease(busy_);
    if (used_up_) throw std::runtime_error("the encoder cannot be used any more");
    used_up_ = true;
    const int32_t* symbol_data = symbols.data();
    const Index* index_data = indexes.data();
    const int64_t count = symbols.size();
    {
      const py::gil_scoped_release unlocked;
      encoder_.prepend(symbol_data, index_data, count, tables);
    }
    used_up_ = false;
  }

  py::bytes finish() {
    const Lease lease(busy_);
    if (used_up_) throw std::runtime_error("the encoder cannot be used any more");
    used_up_ = true;
    encoder_.finish();
    return py::bytes(reinterpret_cast<const char*>(encoder_.data()), encoder_.size());
  }

 private:
  CompressaiEncoder encoder_;
  bool used_up_ = false;  // by an error or by finish()
  std::atomic<bool> busy_{false};
};

class PyDecoder {
 public:
  // Keeps the bytes, which cannot change, alive.
  explicit PyDecoder(py::bytes data)
      : data_(std::move(data)),
        decoder_(reinterpret_cast<const uint8_t*>(PyBytes_AS_STRING(data_.ptr())),
                 static_cast<size_t>(PyBytes_GET_SIZE(data_.ptr()))) {}

  template <typename Index>
  py::array_t<int32_t> pop(const Array<Index>& indexes,  // any shape; the result's as well
                           const CompressaiTables& tables) {
    const Lease lease(busy_);
    require_ready();
    failed_ = true;
    py::array_t<int32_t> symbols(shape_of(indexes));
    const Index* index_data = indexes.data();
    int32_t* symbol_data = symbols.mutable_data();
    const int64_t count = indexes.size();
    {
      const py::gil_scoped_release unlocked;
      decoder_.pop(index_data, count, tables, symbol_data);
    }
    failed_ = false;
    return symbols;
  }

  void finish() {
    const Lease lease(busy_);
    require_ready();
    decoder_.finish();
  }

 private:
  void require_ready() const {
    if (failed_) throw StreamError("the decoder is unusable after an earlier error");
  }

  const py::bytes data_;
  CompressaiDecoder decoder_;
  bool failed_ = false;
  std::atomic<bool> busy_{false};
};

py::array_t<int32_t> scale_indexes(const ScaleIndex& index, const Array<float>& scales) {
  py::array_t<int32_t> indexes(shape_of(scales));
  const float* scale_data = scales.data();
  int32_t* index_data = indexes.mutable_data();
  const int64_t count = scales.size();
  {
    const py::gil_scoped_release unlocked;
    index(scale_data, count, index_data);
  }
  return indexes;
}

}  // namespace

PYBIND11_MODULE(_compressai, m) {
  m.doc() = "compressai's entropy coding; use it through groupedmixer_ext.compressai_rans.";
  // One class for the errors of both coders.
  m.attr("RansError") = py::module_::import("groupedmixer_ext._rans").attr("RansError");
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const StreamError& stream_error) {
      const py::object kind = py::module_::import("groupedmixer_ext._rans").attr("RansError");
      py::set_error(kind, stream_error.what());
    }
  });

  py::class_<CompressaiTables>(m, "Tables")
      .def(py::init(&make_tables), py::arg("cdfs").noconvert(), py::arg("sizes").noconvert(),
           py::arg("offsets").noconvert())
      .def("__len__", &CompressaiTables::size);

  py::class_<PyEncoder>(m, "Encoder")
      .def(py::init<>())
      .def("prepend", &PyEncoder::prepend<uint8_t>, py::arg("symbols").noconvert(),
           py::arg("indexes").noconvert(), py::arg("tables"))
      .def("prepend", &PyEncoder::prepend<int32_t>, py::arg("symbols").noconvert(),
           py::arg("indexes").noconvert(), py::arg("tables"))
      .def("finish", &PyEncoder::finish);

  py::class_<PyDecoder>(m, "Decoder")
      .def(py::init<py::bytes>(), py::arg("data"))
      .def("pop", &PyDecoder::pop<uint8_t>, py::arg("indexes").noconvert(), py::arg("tables"))
      .def("pop", &PyDecoder::pop<int32_t>, py::arg("indexes").noconvert(), py::arg("tables"))
      .def("finish", &PyDecoder::finish);

  py::class_<ScaleIndex>(m, "ScaleIndex")
      .def(py::init([](const Array<float>& thresholds, float bound) {
             return std::make_unique<ScaleIndex>(thresholds.data(), thresholds.size(), bound);
           }),
           py::arg("thresholds").noconvert(), py::arg("bound"))
      .def("__call__", &scale_indexes, py::arg("scales").noconvert());
}
