// SPDX-License-Identifier: MIT
//
// groupedmixer_ext._engine: whole latents and whole pictures for Python, without torch and without
// the GIL. groupedmixer_ext/engine.py is its public face and words the errors about types and
// shapes.

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

namespace py = pybind11;
namespace codec = groupedmixer::codec;
namespace entropy = groupedmixer::entropy;
namespace transform = groupedmixer::transform;

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

using TableArrays = std::tuple<Array<uint16_t>, Array<int32_t>, Array<int32_t>>;
using SettingsTuple = std::tuple<int64_t, int64_t, int64_t>;        // quality, skip_below, tile
using TileTuple = std::tuple<py::buffer, uint32_t, bool>;           // stream, checksum, wanted
using PatchTuple = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // wide, narrow, early, late
using GroupTuple = std::tuple<int64_t, int64_t, int64_t>;

entropy::Tables make_tables(const TableArrays& arrays) {
  const auto& [counts, sizes, offsets] = arrays;
  if (sizes.size() != offsets.size()) throw std::invalid_argument("sizes and offsets must agree");
  return entropy::Tables(counts.data(), counts.size(), sizes.data(), offsets.data(), sizes.size());
}

codec::Settings make_settings(const SettingsTuple& tuple, int threads) {
  const auto& [quality, skip_below, tile] = tuple;
  return {quality, skip_below, tile, threads};
}

py::dict as_dict(const codec::StageTimes& times) {
  py::dict seconds;
  seconds["transform"] = times.transform;
  seconds["hyper"] = times.hyper;
  seconds["entropy_model"] = times.entropy_model;
  seconds["rans"] = times.rans;
  return seconds;
}

// ([(stream, checksum), ...], (num_symbols, num_coded, num_escaped))
py::tuple as_tuple(const codec::CodedLatent& coded) {
  py::list tiles;
  for (const codec::CodedTile& tile : coded.tiles) {
    const py::bytes stream(reinterpret_cast<const char*>(tile.stream.data()), tile.stream.size());
    tiles.append(py::make_tuple(stream, tile.checksum));
  }
  return py::make_tuple(tiles,
                        py::make_tuple(coded.num_symbols, coded.num_coded, coded.num_escaped));
}

// Keeps the buffers of a call's streams where they are.
class Streams {
 public:
  std::vector<codec::TileView> view(const std::vector<TileTuple>& tiles) {
    std::vector<codec::TileView> views;
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

class Engine {
 public:
  Engine(const std::map<std::string, Array<float>>& weights, int64_t latent_channels,
         int64_t hyper_width, int64_t hyper_channels, int64_t slices,
         std::pair<int64_t, int64_t> patch, int64_t width, int64_t layers, bool lrp,
         const std::vector<GroupTuple>& order, const std::optional<PatchTuple>& patch_transform,
         const TableArrays& y_tables, const TableArrays& z_tables) {
    // With the GIL held: a fork during their first use would leave the child waiting for a check
    // that nobody finishes. It also refuses a bad build before there is anything to code.
    groupedmixer::strict::kernels();
    const groupedmixer::ScopedFloatMode mode;
    groupedmixer::WeightMap map;
    for (const auto& [name, array] : weights) {
      const float* values = array.data();
      if (!std::all_of(values, values + array.size(), [](float v) { return std::isfinite(v); })) {
        throw std::invalid_argument(name + " must be finite, got NaN or infinity");
      }
      map.add(name, {array.shape(), array.shape() + array.ndim()}, values);
    }
    codec::LatentSizes sizes;
    sizes.latent_channels = latent_channels;
    sizes.hyper_width = hyper_width;
    sizes.hyper_channels = hyper_channels;
    sizes.mixer = {
        slices, patch.first, patch.second, latent_channels / std::max<int64_t>(slices, 1),
        width,  layers,      lrp,          {}};
    for (const auto& [slice, row, column] : order)
      sizes.mixer.order.push_back({slice, row, column});
    latent_coder_ = std::make_unique<codec::LatentCoder>(map, sizes, make_tables(y_tables),
                                                         make_tables(z_tables));
    if (patch_transform) {
      const auto& [wide, narrow, early, late] = *patch_transform;
      image_coder_ = std::make_unique<codec::ImageCoder>(
          map, transform::PatchSizes{latent_channels, wide, narrow, early, late}, *latent_coder_);
    }
  }

  bool has_transform() const { return image_coder_ != nullptr; }

  py::array_t<float> inverse_gains(int64_t quality) const {
    const groupedmixer::AlignedVector gains = latent_coder_->inverse_gains(quality);
    return py::array_t<float>(static_cast<py::ssize_t>(gains.size()), gains.data());
  }

  // Overwrites y.
  py::tuple encode(Array<float> y, const std::vector<SettingsTuple>& settings, int threads) const {
    const std::vector<codec::Settings> all = settings_of(settings, threads);
    py::array_t<float> y_hat(std::vector<py::ssize_t>(y.shape(), y.shape() + y.ndim()));
    float* values = y.mutable_data();
    float* decoded = y_hat.mutable_data();
    const int64_t batch = y.shape(0), height = y.shape(1), width = y.shape(2);
    codec::StageTimes times;
    std::vector<codec::CodedLatent> coded;
    {
      const py::gil_scoped_release unlocked;
      coded = latent_coder_->encode(values, batch, height, width, all, decoded, times);
    }
    py::list items;
    for (const codec::CodedLatent& item : coded) items.append(as_tuple(item));
    return py::make_tuple(items, y_hat, as_dict(times));
  }

  py::tuple decode(const std::vector<std::vector<TileTuple>>& tiles, int64_t height, int64_t width,
                   const std::vector<SettingsTuple>& settings, int threads) const {
    const std::vector<codec::Settings> all = settings_of(settings, threads);
    Streams streams;
    std::vector<std::vector<codec::TileView>> views;
    bool whole = true;
    for (const auto& item : tiles) {
      views.push_back(streams.view(item));
      for (const codec::TileView& view : views.back()) whole = whole && view.wanted;
    }
    const int64_t channels = latent_coder_->sizes().latent_channels;
    py::array_t<float> y_hat({static_cast<int64_t>(tiles.size()), height, width, channels});
    float* decoded = y_hat.mutable_data();
    const auto count = static_cast<size_t>(y_hat.size());
    codec::StageTimes times;
    {
      const py::gil_scoped_release unlocked;
      if (!whole) std::fill(decoded, decoded + count, 0.0f);
      latent_coder_->decode(views, height, width, all, decoded, times);
    }
    return py::make_tuple(y_hat, as_dict(times));
  }

  py::tuple compress(const Array<uint8_t>& rgb, const SettingsTuple& settings, int threads,
                     bool want_latent) const {
    const codec::Settings one = make_settings(settings, threads);
    const int64_t height = rgb.shape(0), width = rgb.shape(1);
    const codec::ImageCoder::Size latent = image_coder_->latent_size(height, width);
    py::object y_hat = py::none();
    float* decoded = nullptr;
    if (want_latent) {
      py::array_t<float> array(
          {latent.height, latent.width, latent_coder_->sizes().latent_channels});
      decoded = array.mutable_data();
      y_hat = std::move(array);
    }
    const uint8_t* samples = rgb.data();
    codec::StageTimes times;
    codec::CodedLatent coded;
    {
      const py::gil_scoped_release unlocked;
      coded = image_coder_->encode(samples, height, width, one, decoded, times);
    }
    return py::make_tuple(as_tuple(coded), y_hat, as_dict(times));
  }

  py::tuple decompress(const std::vector<TileTuple>& tiles, int64_t height, int64_t width,
                       const SettingsTuple& settings,
                       const std::tuple<int64_t, int64_t, int64_t, int64_t>& region, bool grey,
                       int threads) const {
    const codec::Settings one = make_settings(settings, threads);
    const auto& [top, left, bottom, right] = region;
    Streams streams;
    const std::vector<codec::TileView> views = streams.view(tiles);
    py::array_t<uint8_t> rgb({std::max<int64_t>(bottom - top, 0),
                              std::max<int64_t>(right - left, 0), transform::kColours});
    uint8_t* samples = rgb.mutable_data();
    const transform::PixelRegion pixels = {top, left, bottom, right};
    codec::StageTimes times;
    {
      const py::gil_scoped_release unlocked;
      image_coder_->decode(views, height, width, one, pixels, grey, samples, times);
    }
    return py::make_tuple(rgb, as_dict(times));
  }

 private:
  static std::vector<codec::Settings> settings_of(const std::vector<SettingsTuple>& tuples,
                                                  int threads) {
    std::vector<codec::Settings> all;
    for (const SettingsTuple& tuple : tuples) all.push_back(make_settings(tuple, threads));
    return all;
  }

  std::unique_ptr<codec::LatentCoder> latent_coder_;
  std::unique_ptr<codec::ImageCoder> image_coder_;  // of the patch transforms, else null
};

}  // namespace

PYBIND11_MODULE(_engine, m) {
  m.doc() = "The coding loop; use it through groupedmixer_ext.engine.";
  py::register_exception<codec::TileError>(m, "TileError", PyExc_ValueError);
  py::register_exception<codec::NonFiniteError>(m, "NonFiniteError", PyExc_FloatingPointError);

  py::class_<Engine>(m, "Engine")
      .def(py::init<const std::map<std::string, Array<float>>&, int64_t, int64_t, int64_t, int64_t,
                    std::pair<int64_t, int64_t>, int64_t, int64_t, bool,
                    const std::vector<GroupTuple>&, const std::optional<PatchTuple>&,
                    const TableArrays&, const TableArrays&>(),
           py::kw_only(), py::arg("weights"), py::arg("latent_channels"), py::arg("hyper_width"),
           py::arg("hyper_channels"), py::arg("slices"), py::arg("patch"), py::arg("width"),
           py::arg("layers"), py::arg("lrp"), py::arg("order"), py::arg("patch_transform"),
           py::arg("y_tables"), py::arg("z_tables"))
      .def_property_readonly("has_transform", &Engine::has_transform)
      .def("inverse_gains", &Engine::inverse_gains, py::arg("quality"))
      .def("encode", &Engine::encode, py::arg("y").noconvert(), py::arg("settings"),
           py::arg("threads"))
      .def("decode", &Engine::decode, py::arg("tiles"), py::arg("height"), py::arg("width"),
           py::arg("settings"), py::arg("threads"))
      .def("compress", &Engine::compress, py::arg("rgb").noconvert(), py::arg("settings"),
           py::arg("threads"), py::arg("want_latent"))
      .def("decompress", &Engine::decompress, py::arg("tiles"), py::arg("height"), py::arg("width"),
           py::arg("settings"), py::arg("region"), py::arg("grey"), py::arg("threads"));
}
