// SPDX-License-Identifier: MIT
//
// Which GPU a thread works on.

#pragma once

namespace groupedmixer {

// Makes a GPU the calling thread's current one for the length of a scope.
class DeviceScope {
 public:
  // Throws std::invalid_argument where there is no such GPU, and std::runtime_error where there is
  // none at all or this build has no code for it.
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  void restore() const;

  int before_ = 0, device_ = 0;
};

}  // namespace groupedmixer
