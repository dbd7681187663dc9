// SPDX-License-Identifier: MIT
//
// What the engines' modules share: arguments from Python, results for it, and the coders made of
// weights.

#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "codec/image_coder.h"
#include "codec/latent_coder.h"
#include "common/float_mode.h"
#include "strict/kernels.h"

namespace groupedmixer::codec {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

using TableArrays = std::tuple<Array<uint16_t>, Array<int32_t>, Array<int32_t>>;
using SettingsTuple = std::tuple<int64_t, int64_t, int64_t>;        // quality, skip_below, tile
using TileTuple = std::tuple<py::buffer, uint32_t, bool>;           // stream, checksum, wanted
using PatchTuple = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // wide, narrow, early, late
using GroupTuple = std::tuple<int64_t, int64_t, int64_t>;

inline entropy::Tables make_tables(const TableArrays& arrays) {
  const auto& [counts, sizes, offsets] = arrays;
  if (sizes.size() != offsets.size()) throw std::invalid_argument("sizes and offsets must agree");
  return entropy::Tables(counts.data(), counts.size(), sizes.data(), offsets.data(), sizes.size());
}

inline Settings make_settings(const SettingsTuple& tuple, int threads) {
  const auto& [quality, skip_below, tile] = tuple;
  return {quality, skip_below, tile, threads};
}

inline py::dict as_dict(const StageTimes& times) {
  py::dict seconds;
  seconds["transform"] = times.transform;
  seconds["hyper"] = times.hyper;
  seconds["entropy_model"] = times.entropy_model;
  seconds["rans"] = times.rans;
  return seconds;
}

// ([(stream, checksum), ...], (num_symbols, num_coded, num_escaped))
inline py::tuple as_tuple(const CodedLatent& coded) {
  py::list tiles;
  for (const CodedTile& tile : coded.tiles) {
    const py::bytes stream(reinterpret_cast<const char*>(tile.stream.data()), tile.stream.size());
    tiles.append(py::make_tuple(stream, tile.checksum));
  }
  return py::make_tuple(tiles,
                        py::make_tuple(coded.num_symbols, coded.num_coded, coded.num_escaped));
}

// Keeps the buffers of a call's streams where they are.
class Streams {
 public:
  std::vector<TileView> view(const std::vector<TileTuple>& tiles) {
    std::vector<TileView> views;
    for (const auto& [buffer, checksum, wanted] : tiles) {
      held_.push_back(buffer.request());
      const py::buffer_info& info = held_.back();
      if (info.ndim != 1 || info.itemsize != 1 || (info.size > 1 && info.strides[0] != 1)) {
        throw std::invalid_argument("streams must be contiguous bytes");
      }
      views.push_back({static_cast<const uint8_t*>(info.ptr), static_cast<size_t>(info.size),
                       checksum, wanted});
    }
    return views;
  }

 private:
  std::vector<py::buffer_info> held_;
};

// What an engine codes with. Immutable.
class Coders {
 public:
  Coders(const std::map<std::string, Array<float>>& weights, int64_t latent_channels,
         int64_t hyper_width, int64_t hyper_channels, int64_t slices,
         std::pair<int64_t, int64_t> patch, int64_t width, int64_t layers, bool lrp,
         const std::vector<GroupTuple>& order, const std::optional<PatchTuple>& patch_transform,
         const TableArrays& y_tables, const TableArrays& z_tables) {
    // With the GIL held: a fork during their first use would leave the child waiting for a check
    // that nobody finishes. It also refuses a bad build before there is anything to code.
    strict::kernels();
    const ScopedFloatMode mode;
    WeightMap map;
    for (const auto& [name, array] : weights) {
      const float* values = array.data();
      if (!std::all_of(values, values + array.size(), [](float v) { return std::isfinite(v); })) {
        throw std::invalid_argument(name + " must be finite, got NaN or infinity");
      }
      map.add(name, {array.shape(), array.shape() + array.ndim()}, values);
    }
    LatentSizes sizes;
    sizes.latent_channels = latent_channels;
    sizes.hyper_width = hyper_width;
    sizes.hyper_channels = hyper_channels;
    sizes.mixer = {
        slices, patch.first, patch.second, latent_channels / std::max<int64_t>(slices, 1),
        width,  layers,      lrp,          {}};
    for (const auto& [slice, row, column] : order)
      sizes.mixer.order.push_back({slice, row, column});
    latent_ =
        std::make_unique<LatentCoder>(map, sizes, make_tables(y_tables), make_tables(z_tables));
    if (patch_transform) {
      const auto& [wide, narrow, early, late] = *patch_transform;
      image_ = std::make_unique<ImageCoder>(
          map, transform::PatchSizes{latent_channels, wide, narrow, early, late}, *latent_);
    }
  }

  const LatentCoder& latent() const { return *latent_; }
  const ImageCoder* image() const { return image_.get(); }  // null without patch transforms

  // As class Coders of a module. Each module has one of its own.
  static void bind(py::module_& m) {
    py::class_<Coders, std::shared_ptr<Coders>>(m, "Coders", py::module_local())
        .def(py::init<const std::map<std::string, Array<float>>&, int64_t, int64_t, int64_t,
                      int64_t, std::pair<int64_t, int64_t>, int64_t, int64_t, bool,
                      const std::vector<GroupTuple>&, const std::optional<PatchTuple>&,
                      const TableArrays&, const TableArrays&>(),
             py::kw_only(), py::arg("weights"), py::arg("latent_channels"), py::arg("hyper_width"),
             py::arg("hyper_channels"), py::arg("slices"), py::arg("patch"), py::arg("width"),
             py::arg("layers"), py::arg("lrp"), py::arg("order"), py::arg("patch_transform"),
             py::arg("y_tables"), py::arg("z_tables"))
        .def_property_readonly("has_transform",
                               [](const Coders& c) { return c.image() != nullptr; })
        .def("inverse_gains", &Coders::inverse_gains, py::arg("quality"));
  }

 private:
  py::array_t<float> inverse_gains(int64_t quality) const {
    const AlignedVector gains = latent_->level_rows(quality).inverse_gain;
    return py::array_t<float>(static_cast<py::ssize_t>(gains.size()), gains.data());
  }

  std::unique_ptr<LatentCoder> latent_;
  std::unique_ptr<ImageCoder> image_;
};

}  // namespace groupedmixer::codec
