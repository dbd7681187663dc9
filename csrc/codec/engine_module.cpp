// SPDX-License-Identifier: MIT
//
// groupedmixer_ext._engine: whole latents and whole pictures for Python, without torch and without
// the GIL. groupedmixer_ext/engine.py is its public face and words the errors about types and
// shapes.

#include "codec/engine_arguments.h"

namespace py = pybind11;
using namespace groupedmixer::codec;
using groupedmixer::Stopped;
using groupedmixer::Watch;
namespace transform = groupedmixer::transform;

namespace {

bool is_main_thread() {
  const py::module_ threading = py::module_::import("threading");
  return threading.attr("get_ident")().equal(threading.attr("main_thread")().attr("ident"));
}

// call(watch) without the GIL. `progress` is None or called with tiles done and tiles in all; it
// stops the call by raising, and so does a signal's handler.
template <typename Call>
void run_watched(const py::object& progress, const Call& call) {
  Watch::Tell tell;
  if (!progress.is_none()) {
    tell = [&](int64_t done, int64_t total) {
      const py::gil_scoped_acquire locked;
      progress(done, total);
    };
  }
  Watch::Ask ask;
  if (is_main_thread()) {  // Python handles signals nowhere else
    ask = [] {
      const py::gil_scoped_acquire locked;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    };
  }
  Watch watch(tell, ask);
  const py::gil_scoped_release unlocked;
  try {
    call(watch);
  } catch (const Stopped&) {
    watch.rethrow();
  }
}

class Engine {
 public:
  explicit Engine(std::shared_ptr<Coders> coders) : coders_(std::move(coders)) {}

  // Overwrites y.
  py::tuple encode(Array<float> y, const std::vector<SettingsTuple>& settings, int threads,
                   const py::object& progress) const {
    const std::vector<Settings> all = settings_of(settings, threads);
    py::array_t<float> y_hat(std::vector<py::ssize_t>(y.shape(), y.shape() + y.ndim()));
    float* values = y.mutable_data();
    float* decoded = y_hat.mutable_data();
    const int64_t batch = y.shape(0), height = y.shape(1), width = y.shape(2);
    StageTimes times;
    std::vector<CodedLatent> coded;
    run_watched(progress, [&](Watch& watch) {
      coded = coders_->latent().encode(values, batch, height, width, all, decoded, times, watch);
    });
    py::list items;
    for (const CodedLatent& item : coded) items.append(as_tuple(item));
    return py::make_tuple(items, y_hat, as_dict(times));
  }

  py::tuple decode(const std::vector<std::vector<TileTuple>>& tiles, int64_t height, int64_t width,
                   const std::vector<SettingsTuple>& settings, int threads,
                   const py::object& progress) const {
    const std::vector<Settings> all = settings_of(settings, threads);
    Streams streams;
    std::vector<std::vector<TileView>> views;
    bool whole = true;
    for (const auto& item : tiles) {
      views.push_back(streams.view(item));
      for (const TileView& view : views.back()) whole = whole && view.wanted;
    }
    const int64_t channels = coders_->latent().sizes().latent_channels;
    py::array_t<float> y_hat({static_cast<int64_t>(tiles.size()), height, width, channels});
    float* decoded = y_hat.mutable_data();
    const auto count = static_cast<size_t>(y_hat.size());
    StageTimes times;
    run_watched(progress, [&](Watch& watch) {
      if (!whole) std::fill(decoded, decoded + count, 0.0f);
      coders_->latent().decode(views, height, width, all, decoded, times, watch);
    });
    return py::make_tuple(y_hat, as_dict(times));
  }

  py::tuple compress(const Array<uint8_t>& rgb, const SettingsTuple& settings, int threads,
                     bool want_latent, const py::object& progress) const {
    const Settings one = make_settings(settings, threads);
    const int64_t height = rgb.shape(0), width = rgb.shape(1);
    const ImageCoder::Size latent = coders_->image()->latent_size(height, width);
    py::object y_hat = py::none();
    float* decoded = nullptr;
    if (want_latent) {
      py::array_t<float> array(
          {latent.height, latent.width, coders_->latent().sizes().latent_channels});
      decoded = array.mutable_data();
      y_hat = std::move(array);
    }
    const uint8_t* samples = rgb.data();
    StageTimes times;
    CodedLatent coded;
    run_watched(progress, [&](Watch& watch) {
      coded = coders_->image()->encode(samples, height, width, one, decoded, times, watch);
    });
    return py::make_tuple(as_tuple(coded), y_hat, as_dict(times));
  }

  py::tuple decompress(const std::vector<TileTuple>& tiles, int64_t height, int64_t width,
                       const SettingsTuple& settings,
                       const std::tuple<int64_t, int64_t, int64_t, int64_t>& region, bool grey,
                       int threads, const py::object& progress) const {
    const Settings one = make_settings(settings, threads);
    const auto& [top, left, bottom, right] = region;
    Streams streams;
    const std::vector<TileView> views = streams.view(tiles);
    py::array_t<uint8_t> rgb({std::max<int64_t>(bottom - top, 0),
                              std::max<int64_t>(right - left, 0), transform::kColours});
    uint8_t* samples = rgb.mutable_data();
    const transform::PixelRegion pixels = {top, left, bottom, right};
    StageTimes times;
    run_watched(progress, [&](Watch& watch) {
      coders_->image()->decode(views, height, width, one, pixels, grey, samples, times, watch);
    });
    return py::make_tuple(rgb, as_dict(times));
  }

 private:
  static std::vector<Settings> settings_of(const std::vector<SettingsTuple>& tuples, int threads) {
    std::vector<Settings> all;
    for (const SettingsTuple& tuple : tuples) all.push_back(make_settings(tuple, threads));
    return all;
  }

  std::shared_ptr<Coders> coders_;
};

}  // namespace

PYBIND11_MODULE(_engine, m) {
  m.doc() = "The coding loop; use it through groupedmixer_ext.engine.";
  py::register_exception<TileError>(m, "TileError", PyExc_ValueError);
  py::register_exception<NonFiniteError>(m, "NonFiniteError", PyExc_FloatingPointError);

  Coders::bind(m);
  py::class_<Engine>(m, "Engine")
      .def(py::init<std::shared_ptr<Coders>>(), py::arg("coders").none(false))
      .def("encode", &Engine::encode, py::arg("y").noconvert(), py::arg("settings"),
           py::arg("threads"), py::arg("progress"))
      .def("decode", &Engine::decode, py::arg("tiles"), py::arg("height"), py::arg("width"),
           py::arg("settings"), py::arg("threads"), py::arg("progress"))
      .def("compress", &Engine::compress, py::arg("rgb").noconvert(), py::arg("settings"),
           py::arg("threads"), py::arg("want_latent"), py::arg("progress"))
      .def("decompress", &Engine::decompress, py::arg("tiles"), py::arg("height"), py::arg("width"),
           py::arg("settings"), py::arg("region"), py::arg("grey"), py::arg("threads"),
           py::arg("progress"));
}
