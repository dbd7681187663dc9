// SPDX-License-Identifier: MIT
//
// groupedmixer_ext._engine_cuda: whole latents and whole pictures on a GPU, without torch and
// without the GIL. Arrays are addresses, of the host or of the device;
// groupedmixer_ext/_device_engine.py makes addresses of arrays and checks them.

#include "codec/device_coder.h"
#include "codec/engine_arguments.h"

namespace py = pybind11;
using namespace groupedmixer::codec;
namespace transform = groupedmixer::transform;

namespace {

template <typename T>
T* pointer(uint64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

Settings settings_of(const SettingsTuple& tuple) { return make_settings(tuple, 1); }

class DeviceEngine {
 public:
  DeviceEngine(std::shared_ptr<Coders> coders, int device)
      : coders_(std::move(coders)), coder_(coders_->latent(), coders_->image(), device) {}

  py::tuple encode(uint64_t y, int64_t height, int64_t width, const SettingsTuple& settings,
                   uint64_t y_hat, uint64_t stream) {
    StageTimes times;
    CodedLatent coded;
    {
      const py::gil_scoped_release unlocked;
      coded = coder_.encode(pointer<const float>(y), height, width, settings_of(settings),
                            pointer<float>(y_hat), times, pointer<void>(stream));
    }
    return py::make_tuple(as_tuple(coded), as_dict(times));
  }

  py::dict decode(const std::vector<TileTuple>& tiles, int64_t height, int64_t width,
                  const SettingsTuple& settings, uint64_t y_hat, uint64_t stream) {
    Streams streams;
    const std::vector<TileView> views = streams.view(tiles);
    StageTimes times;
    {
      const py::gil_scoped_release unlocked;
      coder_.decode(views, height, width, settings_of(settings), pointer<float>(y_hat), times,
                    pointer<void>(stream));
    }
    return as_dict(times);
  }

  py::tuple compress(uint64_t rgb, int64_t height, int64_t width, const SettingsTuple& settings,
                     uint64_t y_hat, uint64_t stream) {
    StageTimes times;
    CodedLatent coded;
    {
      const py::gil_scoped_release unlocked;
      coded =
          coder_.encode_picture(pointer<const uint8_t>(rgb), height, width, settings_of(settings),
                                pointer<float>(y_hat), times, pointer<void>(stream));
    }
    return py::make_tuple(as_tuple(coded), as_dict(times));
  }

  py::dict decompress(const std::vector<TileTuple>& tiles, int64_t height, int64_t width,
                      const SettingsTuple& settings,
                      const std::tuple<int64_t, int64_t, int64_t, int64_t>& region, bool grey,
                      uint64_t rgb, uint64_t stream) {
    const auto& [top, left, bottom, right] = region;
    const transform::PixelRegion pixels = {top, left, bottom, right};
    Streams streams;
    const std::vector<TileView> views = streams.view(tiles);
    StageTimes times;
    {
      const py::gil_scoped_release unlocked;
      coder_.decode_picture(views, height, width, settings_of(settings), pixels, grey,
                            pointer<uint8_t>(rgb), times, pointer<void>(stream));
    }
    return as_dict(times);
  }

  // The latent grid of a picture.
  std::pair<int64_t, int64_t> latent_size(int64_t height, int64_t width) const {
    const ImageCoder::Size size = coders_->image()->latent_size(height, width);
    return {size.height, size.width};
  }

  py::dict report() const {
    const DeviceCoder::Report report = coder_.report();
    py::dict facts;
    facts["graph_nodes"] = report.graph_nodes;
    facts["scratch_bytes"] = report.scratch_bytes;
    return facts;
  }

 private:
  std::shared_ptr<Coders> coders_;
  DeviceCoder coder_;
};

// Errors become those of the CPU's engine, so that callers need not care which one they use.
void translate(std::exception_ptr error) {
  const auto set = [](const char* type, const char* message) {
    py::set_error(py::module_::import("groupedmixer_ext._engine").attr(type), message);
  };
  try {
    if (error) std::rethrow_exception(error);
  } catch (const TileError& found) {
    set("TileError", found.what());
  } catch (const NonFiniteError& found) {
    set("NonFiniteError", found.what());
  }
}

}  // namespace

PYBIND11_MODULE(_engine_cuda, m) {
  m.doc() = "The coding loop on a GPU; use it through groupedmixer_ext.engine.";
  py::register_local_exception_translator(translate);
  Coders::bind(m);
  py::class_<DeviceEngine>(m, "DeviceEngine")
      .def(py::init<std::shared_ptr<Coders>, int>(), py::arg("coders").none(false),
           py::arg("device"))
      .def("encode", &DeviceEngine::encode, py::arg("y"), py::arg("height"), py::arg("width"),
           py::arg("settings"), py::arg("y_hat"), py::arg("stream"))
      .def("decode", &DeviceEngine::decode, py::arg("tiles"), py::arg("height"), py::arg("width"),
           py::arg("settings"), py::arg("y_hat"), py::arg("stream"))
      .def("compress", &DeviceEngine::compress, py::arg("rgb"), py::arg("height"), py::arg("width"),
           py::arg("settings"), py::arg("y_hat"), py::arg("stream"))
      .def("decompress", &DeviceEngine::decompress, py::arg("tiles"), py::arg("height"),
           py::arg("width"), py::arg("settings"), py::arg("region"), py::arg("grey"),
           py::arg("rgb"), py::arg("stream"))
      .def("latent_size", &DeviceEngine::latent_size, py::arg("height"), py::arg("width"))
      .def("report", &DeviceEngine::report);
}
