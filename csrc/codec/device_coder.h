// SPDX-License-Identifier: MIT
//
// The coding loop of latent_coder.h and image_coder.h on a GPU: the same bytes, the same latents,
// the same pixels. Symbols never leave the device, and nothing waits for the host between groups.
//
//   - Weights, context cache and scratch lie at fixed addresses. All work of a call whose sizes
//     occurred before is one CUDA graph, recorded the second time and replayed from then on.
//   - Tiles are coded side by side, as many at a time as a bound on memory allows.
//   - Calls of several threads take turns. A call returns when its results are there.
//
// Pointers to latents and pixels may be of the host or of the device. `stream` is a cudaStream_t of
// the coder's device, on which the caller's earlier work is waited for.

#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "codec/image_coder.h"
#include "codec/latent_coder.h"

namespace groupedmixer::codec {

class DeviceCoder {
 public:
  // Copies the weights to GPU number `device`. The coders have to outlive this; without an
  // `image_coder`, there are no pictures. Throws std::invalid_argument where there is no such GPU,
  // std::bad_alloc where it has too little memory, std::runtime_error where it cannot be used.
  DeviceCoder(const LatentCoder& latent_coder, const ImageCoder* image_coder, int device);
  ~DeviceCoder();
  DeviceCoder(const DeviceCoder&) = delete;
  DeviceCoder& operator=(const DeviceCoder&) = delete;

  // As LatentCoder::encode and decode of one latent, without threads. `y` is left as it is. In
  // `times`, the coder's share of a decoder's time belongs to the entropy model.
  CodedLatent encode(const float* y,  // [height, width, M], gains not yet in
                     int64_t height, int64_t width, const Settings& settings,
                     float* y_hat,  // [height, width, M], or null
                     StageTimes& times, void* stream);
  void decode(const std::vector<TileView>& tiles, int64_t height, int64_t width,
              const Settings& settings,
              float* y_hat,  // [height, width, M]
              StageTimes& times, void* stream);

  // As ImageCoder::encode and decode.
  CodedLatent encode_picture(const uint8_t* rgb,  // [height, width, 3]
                             int64_t height, int64_t width, const Settings& settings,
                             float* y_hat,  // [latent height, latent width, M], or null
                             StageTimes& times, void* stream);
  void decode_picture(const std::vector<TileView>& tiles, int64_t height, int64_t width,
                      const Settings& settings, const transform::PixelRegion& region, bool grey,
                      uint8_t* rgb,  // [bottom - top, right - left, 3]
                      StageTimes& times, void* stream);

  // Of the last call.
  struct Report {
    int64_t graph_nodes;    // 0: it was not a graph
    int64_t scratch_bytes;  // of context cache and all else that is not weights
  };
  Report report() const;

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace groupedmixer::codec
