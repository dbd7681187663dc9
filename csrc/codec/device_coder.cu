// SPDX-License-Identifier: MIT

#include <algorithm>
#include <list>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "codec/device_coder.h"
#include "codec/latent_kernels.h"
#include "common/crc32_cuda.h"
#include "common/cuda_graph.h"
#include "common/device.h"
#include "common/device_memory.h"
#include "common/tile_failures.h"
#include "common/tile_set.h"
#include "entropy/device_tables.h"
#include "entropy/rans_cuda.h"
#include "entropy/rans_encode_cuda.h"
#include "entropy/stream_error.h"
#include "entropy/symbols.h"
#include "mixer/device_mixer.h"
#include "strict/kv_cache.h"
#include "transform/device_hyper.h"
#include "transform/device_patch.h"

namespace groupedmixer::codec {
namespace {

using transform::ceil_div;

// What the context caches of tiles that are coded side by side may take, as long as it is enough
// for one tile.
constexpr int64_t kCacheBytes = int64_t{2} << 30;

// Sizes of pictures that are remembered.
constexpr size_t kPlans = 16;

constexpr int kAllBits = 0xff;
constexpr int64_t kStreamAlignment = 16;  // of the streams' copies, in bytes

// Waits for a stream at the end of a scope, whatever ended it: copies are done with the host's
// memory then, and kernels with the device's.
class Drain {
 public:
  explicit Drain(cudaStream_t stream) : stream_(stream) {}
  ~Drain() { cudaStreamSynchronize(stream_); }
  Drain(const Drain&) = delete;
  Drain& operator=(const Drain&) = delete;

 private:
  cudaStream_t stream_;
};

// Which side an address belongs to, CUDA knows.
void copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return;
  check_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
}

void fill(void* to, int byte, size_t bytes, cudaStream_t stream) {
  check_cuda(cudaMemsetAsync(to, byte, bytes, stream), "cudaMemsetAsync");
}

// What a plan is made for: all that the addresses and arguments of its kernels depend on.
struct Shape {
  bool encodes = false;
  int64_t height = 0, width = 0;                  // of the latent
  int64_t picture_height = 0, picture_width = 0;  // 0: no pixels
  int64_t tile = 0, skip_below = 0;
  bool grey = false;
  std::vector<bool> wanted;  // tiles

  bool has_pixels() const { return picture_height > 0; }

  bool operator==(const Shape& other) const {
    const auto key = [](const Shape& s) {
      return std::tie(s.encodes, s.height, s.width, s.picture_height, s.picture_width, s.tile,
                      s.skip_below, s.grey, s.wanted);
    };
    return key(*this) == key(other);
  }
};

// Tiles that are coded side by side.
struct Wave {
  TileSet set;
  size_t first;                   // of the plan's tiles
  DeviceArray<int32_t> position;  // [set.tokens], where a token's patch begins in the latent
};

// LevelRows on the device.
struct DeviceRows {
  float* gain;
  float* inverse_gain;
  float* hyper_gain;
  float* hyper_inverse_gain;
  float* embedding;
};

// Addresses of a plan's memory.
struct Buffers {
  DeviceRows rows;
  uint8_t* rgb;        // [picture height, picture width, 3]
  float* y;            // [height, width, M], to code; gains are multiplied in
  float* y_hat;        // [height, width, M], decoded
  float* z;            // [positions, N_z]
  int16_t* z_symbols;  // [positions, N_z]
  float* z_hat;        // [positions, N_z]
  float* psi;          // [height, width, d]

  uint32_t* failures;   // [1 + tiles], of z and of each tile (tile_failures.h)
  uint32_t* checksums;  // [tiles]

  // To decode.
  uint8_t* data;                 // all streams
  entropy::RansCursor* cursors;  // [streams]

  transform::DevicePatchAnalysis::Scratch analysis;
  transform::DeviceHyperAnalysis::Scratch hyper_analysis;
  transform::DeviceHyperSynthesis::Scratch hyper_synthesis;
  transform::DevicePatchSynthesis::Scratch synthesis;

  struct OfWave {
    mixer::DeviceTiles state;
    uint8_t* indexes;                 // [G, T, C] to encode, [T, C] to decode
    int16_t* symbols;                 // [G, T, C], to encode
    entropy::RansEncodeParams coder;  // to encode
  };
  std::vector<OfWave> waves;
};

struct Plan {
  Shape shape;
  std::vector<size_t> numbers;      // of the tiles to code, among all
  bool first_apart = false;         // the first tile is not wanted, but its stream begins with z
  std::vector<int64_t> capacities;  // bytes of the tiles' streams, then of that first one's
  std::vector<Wave> waves;
  DeviceArray<int32_t> phase;    // [G], of a group within a patch, in latent positions
  DeviceArray<int32_t> channel;  // [G], the first one of a group
  size_t bytes = 0;              // of the buffers
  std::byte* base = nullptr;     // where the buffers are
  Buffers buffers = {};
  bool ran = false;  // so all its kernels are loaded
  CudaGraph graph;

  // The stream that begins with z.
  size_t z_stream() const { return first_apart ? numbers.size() : 0; }

  void forget_addresses() {
    base = nullptr;
    graph = CudaGraph();
  }
};

// The decoders of a call's streams. A stream that cannot even be opened is reported in its turn,
// like those that turn out to be broken.
struct Streams {
  std::vector<entropy::RansCursor> cursors;
  std::vector<std::string> problems;  // of opening them, or ""

  bool open(const TileView& tile, int64_t capacity, int64_t offset) {
    problems.emplace_back();
    cursors.emplace_back();
    try {
      const entropy::StreamHeader header = entropy::parse_header(tile.data, tile.size);
      if (static_cast<int64_t>(tile.size) > capacity) {
        throw entropy::StreamError("is longer than the symbols of its tile can make it");
      }
      cursors.back() = entropy::make_cursor(header, static_cast<uint64_t>(offset));
      return true;
    } catch (const entropy::StreamError& error) {
      problems.back() = error.what();
      cursors.back().fault = entropy::RansFault::kWords;  // so nobody decodes it
      return false;
    }
  }

  // Throw TileError.
  void check_fault(size_t i, int64_t tile) const {
    if (!problems[i].empty()) throw TileError(tile, problems[i]);
    check(tile, [&] { entropy::check_fault(cursors[i]); });
  }
  void check_finished(size_t i, int64_t tile) const {
    check(tile, [&] { entropy::check_finished(cursors[i]); });
  }

 private:
  template <typename Check>
  static void check(int64_t tile, const Check& check) {
    try {
      check();
    } catch (const entropy::StreamError& error) {
      throw TileError(tile, error.what());
    }
  }
};

void check_count(const std::vector<TileView>& tiles, const Shape& shape) {
  if (tiles.size() == shape.wanted.size()) return;
  throw std::invalid_argument("tiles must be " + std::to_string(shape.wanted.size()) + ", got " +
                              std::to_string(tiles.size()));
}

DeviceRows take_rows(DeviceLayout& layout, const LatentSizes& sizes) {
  const int64_t m = sizes.latent_channels, n = sizes.hyper_channels;
  return {layout.take<float>(m), layout.take<float>(m), layout.take<float>(n),
          layout.take<float>(n), layout.take<float>(sizes.mixer.width)};
}

}  // namespace

class DeviceCoder::Implementation {
 public:
  Implementation(const LatentCoder& latent_coder, const ImageCoder* image_coder, int device)
      : latent_(latent_coder),
        image_(image_coder),
        sizes_(latent_coder.sizes()),
        device_(device),
        mixer_(latent_coder.mixer(), latent_coder.thresholds()),
        hyper_analysis_(latent_coder.hyper_analysis()),
        hyper_synthesis_(latent_coder.hyper_synthesis()),
        y_tables_(latent_coder.y_tables()),
        z_tables_(latent_coder.z_tables()),
        medians_(latent_coder.medians()),
        dead_zone_(latent_coder.dead_zone()) {
    if (image_coder == nullptr) return;
    analysis_.emplace(image_coder->analysis());
    synthesis_.emplace(image_coder->synthesis());
  }

  // Throws std::invalid_argument.
  const ImageCoder& pictures() const {
    if (image_ == nullptr) {
      throw std::invalid_argument("there are no transforms to code pixels with");
    }
    return *image_;
  }

  // Of a call for the whole latent or picture. Throw std::invalid_argument.
  Shape shape_of(int64_t height, int64_t width, const Settings& settings) const;
  Shape shape_of_picture(int64_t height, int64_t width, const Settings& settings) const;

  CodedLatent encode(const float* y,      // of a shape without pixels
                     const uint8_t* rgb,  // of one with pixels
                     const Shape& shape, const Settings& settings, float* y_hat, StageTimes& times,
                     cudaStream_t stream);
  void decode(const std::vector<TileView>& tiles, const Shape& shape, const Settings& settings,
              float* y_hat,                                        // of a shape without pixels
              const transform::PixelRegion& region, uint8_t* rgb,  // of one with pixels
              StageTimes& times, cudaStream_t stream);

  Report report() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return report_;
  }

 private:
  int64_t hyper_positions(const Shape& shape) const {
    return ceil_div(shape.height, transform::kHyperStride) *
           ceil_div(shape.width, transform::kHyperStride);
  }
  int64_t hyper_count(const Shape& shape) const {
    return hyper_positions(shape) * sizes_.hyper_channels;
  }
  int64_t stream_capacity(const Shape& shape, const transform::Grid& tile, size_t number) const;
  Plan make_plan(const Shape& shape) const;
  Buffers lay_out(const Plan& plan, DeviceLayout& layout) const;
  Plan& plan_for(const Shape& shape, cudaStream_t stream);

  void run(Plan& plan, cudaStream_t stream);
  void enqueue(const Plan& plan, cudaStream_t stream) const;
  void enqueue_wave(const Plan& plan, size_t index, cudaStream_t stream) const;

  void upload_rows(const Buffers& b, const LevelRows& rows, cudaStream_t stream) const;
  void upload_streams(const Plan& plan, const std::vector<TileView>& tiles, Streams& streams,
                      cudaStream_t stream) const;
  std::vector<uint32_t> finish(const Plan& plan, std::vector<uint32_t>& checksums,
                               cudaStream_t stream) const;

  const LatentCoder& latent_;
  const ImageCoder* image_;
  const LatentSizes& sizes_;
  const int device_;
  mixer::DeviceMixer mixer_;
  transform::DeviceHyperAnalysis hyper_analysis_;
  transform::DeviceHyperSynthesis hyper_synthesis_;
  std::optional<transform::DevicePatchAnalysis> analysis_;
  std::optional<transform::DevicePatchSynthesis> synthesis_;
  entropy::DeviceTableSet y_tables_, z_tables_;
  DeviceArray<float> medians_;
  DeviceArray<float> dead_zone_;

  std::mutex mutex_;  // of all below: calls take turns
  CudaStream recorder_;
  CudaEvent begin_, transformed_, hyper_done_, coded_, end_;
  DeviceMemory memory_;
  std::list<Plan> plans_;  // the latest first; their graphs name what is above
  Report report_{};
};

// ---- plans --------------------------------------------------------------------------------------

Plan DeviceCoder::Implementation::make_plan(const Shape& shape) const {
  const mixer::MixerSizes& sizes = sizes_.mixer;
  Plan plan;
  plan.shape = shape;
  plan.first_apart = !shape.wanted.front();
  const std::vector<transform::Grid> all =
      latent_.tile_regions(shape.height, shape.width, shape.tile);
  const strict::KvCache cache{sizes.heads(), sizes.groups()};
  const auto cache_bytes = [&](int64_t tokens) {
    return sizes.layers * cache.size(tokens) * static_cast<int64_t>(sizeof(uint16_t));
  };
  std::vector<std::vector<int32_t>> positions;  // of the waves
  for (size_t number = 0; number < all.size(); ++number) {
    const transform::Grid& tile = all[number];
    if (!shape.wanted[number]) continue;
    const int64_t height = tile.rows / sizes.patch_h, width = tile.columns / sizes.patch_w;
    if (plan.waves.empty() || plan.waves.back().set.count == TileSet::kMost ||
        cache_bytes(plan.waves.back().set.tokens + height * width) > kCacheBytes) {
      plan.waves.push_back({{}, plan.numbers.size(), {}});
      positions.emplace_back();
    }
    TileSet& set = plan.waves.back().set;
    set.add(static_cast<int32_t>(height), static_cast<int32_t>(width));
    for (int64_t row = 0; row < height; ++row) {
      for (int64_t column = 0; column < width; ++column) {
        const int64_t y = tile.top + row * sizes.patch_h, x = tile.left + column * sizes.patch_w;
        positions.back().push_back(static_cast<int32_t>(y * shape.width + x));
      }
    }
    positions.back().resize(static_cast<size_t>(set.tokens), -1);
    plan.numbers.push_back(number);
    plan.capacities.push_back(stream_capacity(shape, tile, number));
  }
  if (plan.first_apart) plan.capacities.push_back(stream_capacity(shape, all.front(), 0));
  for (size_t i = 0; i < positions.size(); ++i) {
    plan.waves[i].position = DeviceArray<int32_t>(positions[i]);
  }
  std::vector<int32_t> phase, channel;
  for (const mixer::Group& group : sizes.order) {
    phase.push_back(static_cast<int32_t>(group.row_phase * shape.width + group.column_phase));
    channel.push_back(static_cast<int32_t>(group.slice * sizes.channels));
  }
  plan.phase = DeviceArray<int32_t>(phase);
  plan.channel = DeviceArray<int32_t>(channel);
  DeviceLayout measure;
  lay_out(plan, measure);
  plan.bytes = measure.peak();
  return plan;
}

// More bytes than this cannot belong to the stream's symbols: each takes a word and an escape at
// most.
int64_t DeviceCoder::Implementation::stream_capacity(const Shape& shape,
                                                     const transform::Grid& tile,
                                                     size_t number) const {
  const int64_t symbols =
      tile.count() * sizes_.latent_channels + (number == 0 ? hyper_count(shape) : 0);
  constexpr int64_t kHeader = 1 + 5 + entropy::kMaxLanes * entropy::kStateBytes;
  const int64_t bytes = kHeader + symbols * (entropy::kWordBytes + entropy::kMaxEscapeBytes);
  return strict::round_up(bytes, kStreamAlignment);
}

Buffers DeviceCoder::Implementation::lay_out(const Plan& plan, DeviceLayout& layout) const {
  const Shape& shape = plan.shape;
  const int64_t latents = shape.height * shape.width, m = sizes_.latent_channels;
  const int64_t channels = sizes_.mixer.channels, groups = sizes_.mixer.groups();
  const auto tiles = static_cast<int64_t>(plan.numbers.size());
  const int64_t z_size = hyper_count(shape);
  Buffers b{};
  b.rows = take_rows(layout, sizes_);
  b.y_hat = layout.take<float>(latents * m);
  b.z_symbols = layout.take<int16_t>(z_size);
  b.z_hat = layout.take<float>(z_size);
  b.psi = layout.take<float>(latents * sizes_.mixer.width);
  b.failures = layout.take<uint32_t>(1 + tiles);
  b.checksums = layout.take<uint32_t>(tiles);
  b.waves.resize(plan.waves.size());
  if (shape.has_pixels()) {
    b.rgb = layout.take<uint8_t>(shape.picture_height * shape.picture_width * transform::kColours);
  }
  if (shape.encodes) {
    b.y = layout.take<float>(latents * m);
    b.z = layout.take<float>(z_size);
    for (size_t i = 0; i < plan.waves.size(); ++i) {
      const TileSet& set = plan.waves[i].set;
      entropy::RansEncodeParams& coder = b.waves[i].coder;
      coder.set = set;
      coder.channels = static_cast<int32_t>(channels);
      coder.groups = static_cast<int32_t>(groups);
      coder.skip_below = static_cast<int32_t>(shape.skip_below);
      coder.tables = y_tables_.view();
      coder.hyper_tables = z_tables_.view();
      coder.hyper_count = i == 0 ? static_cast<int32_t>(z_size) : 0;
      coder.hyper_symbols = b.z_symbols;
      const int64_t capacity = entropy::encode_capacity(set, channels, groups, coder.hyper_count);
      coder.streams = layout.take<entropy::RansEncodedStream>(set.count);
      coder.words = layout.take<uint16_t>(capacity);
      coder.escapes = layout.take<uint8_t>(capacity * entropy::kMaxEscapeBytes);
    }
  } else {
    b.cursors = layout.take<entropy::RansCursor>(static_cast<int64_t>(plan.capacities.size()));
    int64_t bytes = 0;
    for (const int64_t capacity : plan.capacities) bytes += capacity;
    b.data = layout.take<uint8_t>(bytes);
  }

  // What only one stage needs. Stages follow each other on the stream.
  const size_t mark = layout.mark();
  if (shape.encodes && shape.has_pixels()) {
    b.analysis = analysis_->take(layout, shape.height, shape.width);
    layout.release(mark);
  }
  if (shape.encodes) {
    b.hyper_analysis = hyper_analysis_.take(layout, shape.height, shape.width);
    layout.release(mark);
  }
  b.hyper_synthesis = hyper_synthesis_.take(layout, shape.height, shape.width);
  layout.release(mark);
  for (size_t i = 0; i < plan.waves.size(); ++i) {
    const Wave& wave = plan.waves[i];
    Buffers::OfWave& of = b.waves[i];
    of.state = mixer_.make_tiles(wave.set, layout);
    of.state.position = wave.position.data();
    of.state.latent_width = shape.width;
    of.state.psi = b.psi;
    of.state.level = b.rows.embedding;
    const int64_t count = int64_t{wave.set.tokens} * channels;
    of.indexes = layout.take<uint8_t>(shape.encodes ? groups * count : count);
    if (shape.encodes) {
      of.symbols = layout.take<int16_t>(groups * count);
      of.coder.symbols = of.symbols;
      of.coder.indexes = of.indexes;
      of.coder.counts = layout.take<entropy::RansCounts>(wave.set.count);
      of.coder.coded = layout.take<uint32_t>(wave.set.count * (1 + groups));
    }
    layout.release(mark);
  }
  if (!shape.encodes && shape.has_pixels()) {
    b.synthesis = synthesis_->take(layout, shape.height, shape.width);
    layout.release(mark);
  }
  return b;
}

// The plan for a shape, with its buffers in place.
Plan& DeviceCoder::Implementation::plan_for(const Shape& shape, cudaStream_t stream) {
  const auto found = std::find_if(plans_.begin(), plans_.end(),
                                  [&](const Plan& plan) { return plan.shape == shape; });
  if (found != plans_.end()) {
    plans_.splice(plans_.begin(), plans_, found);
  } else {
    if (shape.height * shape.width >= int64_t{1} << 31) {
      throw std::invalid_argument("a latent must have less than 2^31 positions on a GPU, got " +
                                  std::to_string(shape.height) + " x " +
                                  std::to_string(shape.width));
    }
    plans_.push_front(make_plan(shape));
    if (plans_.size() > kPlans) plans_.pop_back();
  }
  Plan& plan = plans_.front();
  if (memory_.size() < plan.bytes) {
    for (Plan& one : plans_) one.forget_addresses();
    memory_ = DeviceMemory();  // first, or both would have to fit
    memory_ = DeviceMemory(plan.bytes);
    // So that nothing that a kernel reads is undefined, not even between tiles.
    fill(memory_.data(), 0, memory_.size(), stream);
  }
  if (plan.base == nullptr) {
    DeviceLayout layout(memory_.data());
    plan.buffers = lay_out(plan, layout);
    plan.base = memory_.data();
  }
  report_.scratch_bytes = static_cast<int64_t>(memory_.size());
  return plan;
}

// ---- the work of a call -------------------------------------------------------------------------

// At first as it is, which loads the kernels, then as a graph.
void DeviceCoder::Implementation::run(Plan& plan, cudaStream_t stream) {
  if (!plan.ran) {
    enqueue(plan, stream);
    plan.ran = true;
    report_.graph_nodes = 0;
    return;
  }
  if (!plan.graph) {
    const cudaStream_t recorder = recorder_.get();
    plan.graph = CudaGraph::record(recorder, [&] { enqueue(plan, recorder); });
  }
  if (!plan.graph) {  // another thread has spoilt it; the next call tries again
    enqueue(plan, stream);
    report_.graph_nodes = 0;
    return;
  }
  plan.graph.launch(stream);
  report_.graph_nodes = static_cast<int64_t>(plan.graph.nodes());
}

void DeviceCoder::Implementation::enqueue(const Plan& plan, cudaStream_t stream) const {
  const Shape& shape = plan.shape;
  const Buffers& b = plan.buffers;
  const int64_t latents = shape.height * shape.width, positions = hyper_positions(shape);
  const int64_t m = sizes_.latent_channels, n = sizes_.hyper_channels;
  begin_.record(stream);
  if (shape.encodes && shape.has_pixels()) {
    analysis_->run(b.rgb, shape.picture_height, shape.picture_width, shape.height, shape.width, b.y,
                   b.analysis, stream);
  }
  transformed_.record(stream);
  if (shape.encodes) {
    launch_scale_channels({b.y, b.rows.gain, latents, m}, stream);
    hyper_analysis_.run(b.y, shape.height, shape.width, b.z, b.hyper_analysis, stream);
    launch_quantize_hyper(
        {b.z, b.rows.hyper_gain, medians_.data(), b.z_symbols, b.failures, positions, n}, stream);
  } else {
    entropy::launch_rans_channel_decode({b.data, b.cursors + plan.z_stream(), z_tables_.view(),
                                         b.z_symbols, static_cast<int32_t>(positions * n)},
                                        stream);
  }
  launch_dequantize_hyper(
      {b.z_symbols, medians_.data(), b.rows.hyper_inverse_gain, b.z_hat, positions, n}, stream);
  hyper_synthesis_.run(b.z_hat, shape.height, shape.width, b.psi, b.hyper_synthesis, stream);
  hyper_done_.record(stream);
  for (size_t i = 0; i < plan.waves.size(); ++i) enqueue_wave(plan, i, stream);
  coded_.record(stream);
  if (!shape.encodes && shape.has_pixels()) {
    synthesis_->run(b.y_hat, shape.height, shape.width, shape.picture_height, shape.picture_width,
                    shape.grey, b.rgb, b.synthesis, stream);
  }
  end_.record(stream);
}

// One group after another; the context cache holds those before.
void DeviceCoder::Implementation::enqueue_wave(const Plan& plan, size_t index,
                                               cudaStream_t stream) const {
  const Shape& shape = plan.shape;
  const Buffers& b = plan.buffers;
  const Wave& wave = plan.waves[index];
  const Buffers::OfWave& of = b.waves[index];
  const int64_t channels = sizes_.mixer.channels, groups = sizes_.mixer.groups();
  const int64_t count = int64_t{wave.set.tokens} * channels;
  mixer::DeviceTiles state = of.state;
  state.failures = b.failures + 1 + wave.first;
  mixer_.prepare(state, stream);
  for (int64_t step = 0; step < groups; ++step) {
    const mixer::Group& group = sizes_.mixer.order[static_cast<size_t>(step)];
    float* y_hat = mixer_.decoded(state, step);
    uint8_t* indexes = of.indexes + (shape.encodes ? step * count : 0);
    mixer_.predict(state, step, indexes, stream);
    if (shape.encodes) {
      entropy::QuantizeTilesParams quantize{};
      quantize.y = b.y;
      quantize.latent_width = shape.width;
      quantize.latent_channels = sizes_.latent_channels;
      quantize.row_phase = group.row_phase;
      quantize.column_phase = group.column_phase;
      quantize.slice = group.slice;
      quantize.set = wave.set;
      quantize.position = wave.position.data();
      quantize.mean = state.mean;
      quantize.indexes = indexes;
      quantize.dead_zone = dead_zone_.data();
      quantize.channels = static_cast<int32_t>(channels);
      quantize.skip_below = static_cast<int32_t>(shape.skip_below);
      quantize.symbols = of.symbols + step * count;
      quantize.y_hat = y_hat;
      quantize.failures = state.failures;
      quantize.failure = latent_failure(step);
      entropy::launch_quantize_tiles(quantize, stream);
    } else {
      entropy::launch_rans_group_decode(
          {b.data, b.cursors + wave.first, wave.set, static_cast<int32_t>(channels),
           static_cast<int32_t>(shape.skip_below), y_tables_.view(), indexes, state.mean, y_hat},
          stream);
    }
    mixer_.correct(state, step, stream);
  }
  launch_tile_checksums({state.y_hat, wave.set, static_cast<int32_t>(channels),
                         static_cast<int32_t>(groups), b.checksums + wave.first},
                        stream);
  const bool for_synthesis = !shape.encodes && shape.has_pixels();
  launch_merge_groups({wave.set, state.y_hat, wave.position.data(), plan.phase.data(),
                       plan.channel.data(), for_synthesis ? b.rows.inverse_gain : nullptr, b.y_hat,
                       groups, channels, sizes_.latent_channels},
                      stream);
  if (shape.encodes) entropy::launch_rans_encode(of.coder, stream);
}

// ---- calls --------------------------------------------------------------------------------------

void DeviceCoder::Implementation::upload_rows(const Buffers& b, const LevelRows& rows,
                                              cudaStream_t stream) const {
  const auto upload = [&](float* to, const AlignedVector& from) {
    copy(to, from.data(), from.size() * sizeof(float), stream);
  };
  upload(b.rows.gain, rows.gain);
  upload(b.rows.inverse_gain, rows.inverse_gain);
  upload(b.rows.hyper_gain, rows.hyper_gain);
  upload(b.rows.hyper_inverse_gain, rows.hyper_inverse_gain);
  upload(b.rows.embedding, rows.embedding);
}

// What the GPU found, copied and waited for.
std::vector<uint32_t> DeviceCoder::Implementation::finish(const Plan& plan,
                                                          std::vector<uint32_t>& checksums,
                                                          cudaStream_t stream) const {
  const size_t tiles = plan.numbers.size();
  std::vector<uint32_t> failures(1 + tiles);
  checksums.resize(tiles);
  copy(failures.data(), plan.buffers.failures, failures.size() * sizeof(uint32_t), stream);
  copy(checksums.data(), plan.buffers.checksums, tiles * sizeof(uint32_t), stream);
  check_cuda(cudaStreamSynchronize(stream), "the coding loop");
  return failures;
}

CodedLatent DeviceCoder::Implementation::encode(const float* y, const uint8_t* rgb,
                                                const Shape& shape, const Settings& settings,
                                                float* y_hat, StageTimes& times,
                                                cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceScope scope(device_);
  Plan& plan = plan_for(shape, stream);
  const Buffers& b = plan.buffers;
  const int64_t plane = shape.height * shape.width * sizes_.latent_channels;
  const LevelRows rows = latent_.level_rows(settings.quality);
  std::vector<std::vector<entropy::RansEncodedStream>> encoded(plan.waves.size());
  const Drain drain(stream);
  upload_rows(b, rows, stream);
  fill(b.failures, kAllBits, (1 + plan.numbers.size()) * sizeof(uint32_t), stream);
  if (shape.has_pixels()) {
    copy(b.rgb, rgb, static_cast<size_t>(shape.picture_height * shape.picture_width * 3), stream);
  } else {
    copy(b.y, y, static_cast<size_t>(plane) * sizeof(float), stream);
  }
  run(plan, stream);

  for (size_t i = 0; i < plan.waves.size(); ++i) {
    encoded[i].resize(static_cast<size_t>(plan.waves[i].set.count));
    copy(encoded[i].data(), b.waves[i].coder.streams,
         encoded[i].size() * sizeof(entropy::RansEncodedStream), stream);
  }
  std::vector<uint32_t> checksums;
  const std::vector<uint32_t> failures = finish(plan, checksums, stream);
  if (failures.front() != kNoTileFailure) throw NonFiniteError(non_finite_hyper_latent());
  for (size_t i = 1; i < failures.size(); ++i) {
    if (failures[i] == kNoTileFailure) continue;
    throw NonFiniteError(failed_at_y(failures[i])
                             ? non_finite_y()
                             : non_finite_prediction(failed_step(failures[i])));
  }

  CodedLatent coded;
  coded.num_symbols = plane + hyper_count(shape);
  for (size_t i = 0; i < plan.waves.size(); ++i) {
    for (const entropy::RansEncodedStream& one : encoded[i]) {
      std::vector<uint16_t> words(one.num_words);
      std::vector<uint8_t> escapes(one.escape_bytes);
      const entropy::RansEncodeParams& coder = b.waves[i].coder;
      copy(words.data(), coder.words + one.first_word, words.size() * sizeof(uint16_t), stream);
      copy(escapes.data(), coder.escapes + one.first_escape, escapes.size(), stream);
      check_cuda(cudaStreamSynchronize(stream), "the coding loop");
      coded.tiles.push_back({entropy::assemble_stream(one, words.data(), escapes.data()),
                             checksums[coded.tiles.size()]});
      coded.num_coded += one.coded;
      coded.num_escaped += one.escaped;
    }
  }
  if (y_hat != nullptr) {
    copy(y_hat, b.y_hat, static_cast<size_t>(plane) * sizeof(float), stream);
    check_cuda(cudaStreamSynchronize(stream), "the coding loop");
  }
  times.transform += transformed_.seconds_since(begin_);
  times.hyper += hyper_done_.seconds_since(transformed_);
  times.entropy_model += coded_.seconds_since(hyper_done_);
  return coded;
}

void DeviceCoder::Implementation::decode(const std::vector<TileView>& tiles, const Shape& shape,
                                         const Settings& settings, float* y_hat,
                                         const transform::PixelRegion& region, uint8_t* rgb,
                                         StageTimes& times, cudaStream_t stream) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const DeviceScope scope(device_);
  Plan& plan = plan_for(shape, stream);
  const Buffers& b = plan.buffers;
  const auto plane = static_cast<size_t>(shape.height * shape.width * sizes_.latent_channels);
  const LevelRows rows = latent_.level_rows(settings.quality);
  Streams streams;
  const Drain drain(stream);
  upload_rows(b, rows, stream);
  fill(b.failures, kAllBits, (1 + plan.numbers.size()) * sizeof(uint32_t), stream);
  upload_streams(plan, tiles, streams, stream);
  if (plan.numbers.size() < tiles.size()) fill(b.y_hat, 0, plane * sizeof(float), stream);
  run(plan, stream);

  copy(streams.cursors.data(), b.cursors, streams.cursors.size() * sizeof(entropy::RansCursor),
       stream);
  std::vector<uint32_t> checksums;
  const std::vector<uint32_t> failures = finish(plan, checksums, stream);
  streams.check_fault(plan.z_stream(), 0);
  for (size_t i = 0; i < plan.numbers.size(); ++i) {
    const auto number = static_cast<int64_t>(plan.numbers[i]);
    streams.check_fault(i, number);
    if (failures[1 + i] != kNoTileFailure) {
      throw TileError(number, non_finite_prediction(failed_step(failures[1 + i])));
    }
    streams.check_finished(i, number);
    const uint32_t wanted = tiles[plan.numbers[i]].checksum;
    if (checksums[i] != wanted) throw TileError(number, wrong_checksum(checksums[i], wanted));
  }
  if (shape.has_pixels()) {
    const int64_t pitch = shape.picture_width * transform::kColours;
    const int64_t row = (region.right - region.left) * transform::kColours;
    const uint8_t* from = b.rgb + region.top * pitch + region.left * transform::kColours;
    check_cuda(
        cudaMemcpy2DAsync(rgb, static_cast<size_t>(row), from, static_cast<size_t>(pitch),
                          static_cast<size_t>(row), static_cast<size_t>(region.bottom - region.top),
                          cudaMemcpyDefault, stream),
        "cudaMemcpy2DAsync");
  } else {
    copy(y_hat, b.y_hat, plane * sizeof(float), stream);
  }
  check_cuda(cudaStreamSynchronize(stream), "the coding loop");
  times.hyper += hyper_done_.seconds_since(begin_);
  times.entropy_model += coded_.seconds_since(hyper_done_);
  times.transform += end_.seconds_since(coded_);
}

// Enqueues the copy of all streams and of decoders at their beginnings.
void DeviceCoder::Implementation::upload_streams(const Plan& plan,
                                                 const std::vector<TileView>& tiles,
                                                 Streams& streams, cudaStream_t stream) const {
  int64_t offset = 0;
  for (size_t i = 0; i < plan.capacities.size(); ++i) {
    const TileView& tile = tiles[i < plan.numbers.size() ? plan.numbers[i] : 0];
    if (streams.open(tile, plan.capacities[i], offset)) {
      copy(plan.buffers.data + offset, tile.data, tile.size, stream);
    }
    offset += plan.capacities[i];
  }
  copy(plan.buffers.cursors, streams.cursors.data(),
       streams.cursors.size() * sizeof(entropy::RansCursor), stream);
}

Shape DeviceCoder::Implementation::shape_of(int64_t height, int64_t width,
                                            const Settings& settings) const {
  latent_.check(height, width, settings);
  Shape shape;
  shape.height = height;
  shape.width = width;
  shape.tile = settings.tile;
  shape.skip_below = settings.skip_below;
  shape.wanted.assign(static_cast<size_t>(latent_.count_tiles(height, width, settings.tile)), true);
  return shape;
}

Shape DeviceCoder::Implementation::shape_of_picture(int64_t height, int64_t width,
                                                    const Settings& settings) const {
  const ImageCoder::Size latent = pictures().latent_size(height, width);
  Shape shape = shape_of(latent.height, latent.width, settings);
  shape.picture_height = height;
  shape.picture_width = width;
  return shape;
}

// ---- DeviceCoder --------------------------------------------------------------------------------

DeviceCoder::DeviceCoder(const LatentCoder& latent_coder, const ImageCoder* image_coder,
                         int device) {
  const DeviceScope scope(device);
  implementation_ = std::make_unique<Implementation>(latent_coder, image_coder, device);
}

DeviceCoder::~DeviceCoder() = default;

CodedLatent DeviceCoder::encode(const float* y, int64_t height, int64_t width,
                                const Settings& settings, float* y_hat, StageTimes& times,
                                void* stream) {
  Shape shape = implementation_->shape_of(height, width, settings);
  shape.encodes = true;
  return implementation_->encode(y, nullptr, shape, settings, y_hat, times,
                                 static_cast<cudaStream_t>(stream));
}

void DeviceCoder::decode(const std::vector<TileView>& tiles, int64_t height, int64_t width,
                         const Settings& settings, float* y_hat, StageTimes& times, void* stream) {
  Shape shape = implementation_->shape_of(height, width, settings);
  check_count(tiles, shape);
  for (size_t i = 0; i < tiles.size(); ++i) shape.wanted[i] = tiles[i].wanted;
  implementation_->decode(tiles, shape, settings, y_hat, {}, nullptr, times,
                          static_cast<cudaStream_t>(stream));
}

CodedLatent DeviceCoder::encode_picture(const uint8_t* rgb, int64_t height, int64_t width,
                                        const Settings& settings, float* y_hat, StageTimes& times,
                                        void* stream) {
  Shape shape = implementation_->shape_of_picture(height, width, settings);
  shape.encodes = true;
  return implementation_->encode(nullptr, rgb, shape, settings, y_hat, times,
                                 static_cast<cudaStream_t>(stream));
}

void DeviceCoder::decode_picture(const std::vector<TileView>& tiles, int64_t height, int64_t width,
                                 const Settings& settings, const transform::PixelRegion& region,
                                 bool grey, uint8_t* rgb, StageTimes& times, void* stream) {
  std::vector<bool> wanted = implementation_->pictures().tiles_for(region, height, width, settings);
  Shape shape = implementation_->shape_of_picture(height, width, settings);
  shape.wanted = std::move(wanted);
  shape.grey = grey;
  check_count(tiles, shape);
  implementation_->decode(tiles, shape, settings, nullptr, region, rgb, times,
                          static_cast<cudaStream_t>(stream));
}

DeviceCoder::Report DeviceCoder::report() const { return implementation_->report(); }

}  // namespace groupedmixer::codec
