// Functions of numbers.

// Those of the CUDA library bring their path for huge arguments, and a division its path for tiny
// ones, to every place they are written out at; two calls of one argument share what is the same.

// How far a number is from the nearest multiple of pi/2, and which that is, modulo four. The parts of pi/2
// are each as exact as a float; the first product is subtracted exactly.
__device__ __forceinline__ float lane_from_quarter(float x, int* quarter) {
  // Numbers of this size are whole, and their last bits are the quarter's: rounding and converting
  // would take a slower pipe.
  const float shifted = fmaf(x, 0.636619747f, 12582912.0f), q = shifted - 12582912.0f;
  *quarter = static_cast<int>(__float_as_uint(shifted));
  float r = fmaf(-q, 1.57079637f, x);
  r = fmaf(-q, -4.37113883e-8f, r);
  return fmaf(-q, -1.71512451e-15f, r);
}

// Sine and cosine within an eighth of a turn, by polynomials with the least largest error.
__device__ __forceinline__ float lane_near_sine(float r) {
  const float s = r * r;
  const float p = fmaf(fmaf(-1.95172339e-4f, s, 8.332178e-3f), s, -1.66666552e-1f);
  return fmaf(p * s, r, r);
}

__device__ __forceinline__ float lane_near_cosine(float r) {
  const float s = r * r;
  const float p = fmaf(fmaf(2.44383791e-5f, s, -1.38873665e-3f), s, 4.16666456e-2f);
  return fmaf(fmaf(p, s, -0.5f), s, 1.0f);
}

__device__ __noinline__ float lane_far_sine(float x) { return sinf(x); }
__device__ __noinline__ float lane_far_cosine(float x) { return cosf(x); }

// Largest error 1.5 units in the last place. Those `within` are for arguments up to LANE_NEAR, and
// have no branch, across which the compiler would not mix the instructions of several calls.
#define LANE_NEAR 48000.0f

__device__ __forceinline__ float lane_sin_within(float x) {
  int quarter;
  const float r = lane_from_quarter(x, &quarter);
  const float found = quarter & 1 ? lane_near_cosine(r) : lane_near_sine(r);
  return quarter & 2 ? -found : found;
}

__device__ __forceinline__ float lane_cos_within(float x) {
  int quarter;
  const float r = lane_from_quarter(x, &quarter);
  const float found = quarter & 1 ? lane_near_sine(r) : lane_near_cosine(r);
  return (quarter + 1) & 2 ? -found : found;
}

__device__ __forceinline__ float lane_sin(float x) {
  return fabsf(x) > LANE_NEAR ? lane_far_sine(x) : lane_sin_within(x);
}

__device__ __forceinline__ float lane_cos(float x) {
  return fabsf(x) > LANE_NEAR ? lane_far_cosine(x) : lane_cos_within(x);
}

// Within a unit in the last place, of divisors from 1 on; infinity gives 0.
__device__ __forceinline__ float lane_reciprocal(float x) {
  float found;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
  return found;
}

__device__ __forceinline__ float lane_sigmoid(float x) {
  return lane_reciprocal(1.0f + expf(-x));
}

__device__ __forceinline__ double lane_sin(double x) { return sin(x); }
__device__ __forceinline__ double lane_cos(double x) { return cos(x); }
__device__ __forceinline__ double lane_sin_within(double x) { return sin(x); }
__device__ __forceinline__ double lane_cos_within(double x) { return cos(x); }
__device__ __forceinline__ double lane_sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// The bits of the nearest float16, the even one of two, and the number that such bits are.
__device__ __forceinline__ unsigned short lane_float16(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

__device__ __forceinline__ float lane_of_float16(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

// The bits of the nearest bfloat16, the even one of two; one instruction.
__device__ __forceinline__ unsigned short lane_bfloat16(float x) {
  unsigned short bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
