// SPDX-License-Identifier: MIT
//
// What kernels call, in terms of device.h and of the host's own arithmetic, which is the same IEEE
// arithmetic in the default mode. To be compiled with -ffp-contract=off.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "device.h"

namespace cuda_host {

// A type that takes no part in the deduction of template arguments.
template <typename T>
struct Given {
  using Type = T;
};

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename T>
T shuffle(Collective collective, uint32_t mask, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "as CUDA");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  bits = sync_lanes(collective, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Saturates, and takes not a number for 0.
template <typename Integer>
Integer to_integer(float whole) {
  constexpr bool kSigned = Integer(-1) < Integer(0);
  constexpr float kEnd = kSigned ? 0x1p31f : 0x1p32f;
  if (!(whole == whole)) return 0;
  if (whole >= kEnd) return static_cast<Integer>(kSigned ? 0x7fffffffu : 0xffffffffu);
  if (whole <= (kSigned ? -kEnd : 0.0f)) return kSigned ? Integer(0x80000000u) : Integer(0);
  return static_cast<Integer>(whole);
}

}  // namespace cuda_host

// ---- barriers and warps -------------------------------------------------------------------------

inline void __syncthreads() { cuda_host::sync_threads(); }

inline void __syncwarp(unsigned int mask = 0xffffffffu) {
  cuda_host::sync_lanes(cuda_host::Collective::kSyncWarp, mask);
}
inline unsigned int __ballot_sync(unsigned int mask, int predicate) {
  return static_cast<unsigned int>(
      cuda_host::sync_lanes(cuda_host::Collective::kBallot, mask, predicate != 0));
}
inline int __any_sync(unsigned int mask, int predicate) {
  return cuda_host::sync_lanes(cuda_host::Collective::kAny, mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned int mask, int predicate) {
  return cuda_host::sync_lanes(cuda_host::Collective::kAll, mask, predicate != 0) == mask;
}

// `width` splits a warp into segments, a power of two each. A source outside of the own segment
// wraps around in __shfl_sync and is the own lane elsewhere.

template <typename T>
T __shfl_sync(unsigned int mask, T value, int source, int width = cuda_host::kWarp) {
  const int lane = cuda_host::lane();
  return cuda_host::shuffle(cuda_host::Collective::kShuffle, mask, value,
                            (lane & -width) | (source & (width - 1)));
}
template <typename T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = cuda_host::kWarp) {
  const int lane = cuda_host::lane();
  const bool inside = static_cast<unsigned int>(lane & (width - 1)) >= delta;
  return cuda_host::shuffle(cuda_host::Collective::kShuffleUp, mask, value,
                            inside ? lane - static_cast<int>(delta) : lane);
}
template <typename T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = cuda_host::kWarp) {
  const int lane = cuda_host::lane();
  const bool inside = static_cast<unsigned int>(lane & (width - 1)) + uint64_t{delta} <
                      static_cast<unsigned int>(width);
  return cuda_host::shuffle(cuda_host::Collective::kShuffleDown, mask, value,
                            inside ? lane + static_cast<int>(delta) : lane);
}
template <typename T>
T __shfl_xor_sync(unsigned int mask, T value, int bits, int width = cuda_host::kWarp) {
  const int lane = cuda_host::lane();
  const int source = lane ^ bits;
  // Into an earlier segment is allowed, into a later one is not.
  const bool inside = source < (lane & -width) + width;
  return cuda_host::shuffle(cuda_host::Collective::kShuffleXor, mask, value,
                            inside ? source : lane);
}

// ---- atomics: threads run one at a time ---------------------------------------------------------

template <typename T>
T atomicExch(T* address, typename cuda_host::Given<T>::Type value) {
  const T old = *address;
  *address = value;
  return old;
}
template <typename T>
T atomicCAS(T* address, typename cuda_host::Given<T>::Type expected,
            typename cuda_host::Given<T>::Type value) {
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}
template <typename T>
T atomicAdd(T* address, typename cuda_host::Given<T>::Type value) {
  return atomicExch(address, *address + value);
}
template <typename T>
T atomicMax(T* address, typename cuda_host::Given<T>::Type value) {
  return atomicExch(address, *address > value ? *address : value);
}
template <typename T>
T atomicMin(T* address, typename cuda_host::Given<T>::Type value) {
  return atomicExch(address, *address < value ? *address : value);
}
template <typename T>
T atomicOr(T* address, typename cuda_host::Given<T>::Type value) {
  return atomicExch(address, *address | value);
}
template <typename T>
T atomicAnd(T* address, typename cuda_host::Given<T>::Type value) {
  return atomicExch(address, *address & value);
}
template <typename T>
T atomicXor(T* address, typename cuda_host::Given<T>::Type value) {
  return atomicExch(address, *address ^ value);
}

// ---- memory -------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- floats -------------------------------------------------------------------------------------

inline unsigned int __float_as_uint(float x) { return cuda_host::bit_cast<unsigned int>(x); }
inline int __float_as_int(float x) { return cuda_host::bit_cast<int>(x); }
inline float __uint_as_float(unsigned int x) { return cuda_host::bit_cast<float>(x); }
inline float __int_as_float(int x) { return cuda_host::bit_cast<float>(x); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

inline int __float2int_rn(float x) { return cuda_host::to_integer<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return cuda_host::to_integer<int>(std::trunc(x)); }
inline int __float2int_rd(float x) { return cuda_host::to_integer<int>(std::floor(x)); }
inline unsigned int __float2uint_rn(float x) {
  return cuda_host::to_integer<unsigned int>(std::nearbyint(x));
}
inline unsigned int __float2uint_rz(float x) {
  return cuda_host::to_integer<unsigned int>(std::trunc(x));
}
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned int x) { return static_cast<float>(x); }

// ---- integers -----------------------------------------------------------------------------------

inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned int __brev(unsigned int x) {
  unsigned int reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
inline int __mulhi(int a, int b) { return static_cast<int>(int64_t{a} * b >> 32); }
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
  return static_cast<unsigned int>(uint64_t{a} * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>(static_cast<Wide>(a) * b >> 64);
}
inline unsigned int __funnelshift_l(unsigned int low, unsigned int high, unsigned int shift) {
  return static_cast<unsigned int>(((uint64_t{high} << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift) {
  return static_cast<unsigned int>((uint64_t{high} << 32 | low) >> (shift & 31));
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned int min(unsigned int a, unsigned int b) { return a < b ? a : b; }
inline unsigned int max(unsigned int a, unsigned int b) { return a > b ? a : b; }
inline long min(long a, long b) { return a < b ? a : b; }
inline long max(long a, long b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
