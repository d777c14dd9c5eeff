/* Vectors of LANES floats, and what kquants.c and mlx_search.c both do with them.

   Every lane of a vector holds another group of weights: `x[i]` are the weights number i of LANES groups. The build
   compiles each file once for each vector width: LANES is 4 (SSE2, NEON), 8 (AVX2) or 16 (AVX-512). A file that
   includes this one defines MOST, the weights in its largest group. */

#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "needs float operations in their order, and little-endian memory"
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

/* What plain C can't say of vectors: VECTOR(min) is the processor's own minimum. */
#ifdef __aarch64__
#include <arm_neon.h>
#define VECTOR(name) v##name##q_f32
#else
#include <immintrin.h>
#if LANES == 16
#define VECTOR(name) _mm512_##name##_ps
#elif LANES == 8
#define VECTOR(name) _mm256_##name##_ps
#else
#define VECTOR(name) _mm_##name##_ps
#endif
#endif

static const Floats zeros;
static inline Floats smaller(Floats a, Floats b) { return (Floats)VECTOR(min)(a, b); }
static inline Floats larger(Floats a, Floats b) { return (Floats)VECTOR(max)(a, b); }
static inline Floats root(Floats a) { return (Floats)VECTOR(sqrt)(a); }
static inline Floats all(float value) { return value - zeros; }
static inline Floats magnitude(Floats a) { return (Floats)((Ints)a & 0x7fffffff); }
/* To the nearest integer, in the middle to the even one; for magnitudes up to 2^22. */
static inline Floats rounded(Floats a) { return (a + 12582912.0f) - 12582912.0f; }

/* `mask ? a : b` in each lane. */
static inline Floats choose(Ints mask, Floats a, Floats b) { return (Floats)((mask & (Ints)a) | (~mask & (Ints)b)); }

static inline Ints limited(Ints a, int32_t least, int32_t most)
{
    a = ((a < least) & least) | (~(a < least) & a);
    return ((a > most) & most) | (~(a > most) & a);
}

/* ggml_compute_fp32_to_fp16 and back. */
static Ints to_half(Floats a)
{
    Floats base = (magnitude(a) * 0x1.0p+112f) * 0x1.0p-110f;
    Ints exponent = limited((Ints)a & 0x7f800000, 0x38800000, 0x77800000);
    Ints bits = (Ints)((Floats)(exponent + 0x07800000) + base);
    return (((Ints)a >> 16) & 0x8000) | (((bits >> 13) & 0x7c00) + (bits & 0x0fff));
}

static Floats from_half(Ints half)
{
    Ints rest = half & 0x7fff;
    Floats normal = (Floats)((rest << 13) + 0x70000000) * 0x1.0p-112f;
    Floats denormal = (Floats)(rest | (126 << 23)) - 0.5f;
    return (Floats)((Ints)choose(rest < 0x0400, denormal, normal) | ((half & 0x8000) << 16));
}

enum { FLOAT32, FLOAT16, BFLOAT16 }; /* what weights are stored as */

/* `count` groups of `size` values from group `first` on, one in each lane; after `period` values the first one follows
   again. */
static void load(const void *values, int type, int64_t first, int count, int size, int64_t period, Floats *x)
{
    Ints bits[MOST];
    for (int lane = 0; lane < LANES; ++lane) {
        int64_t start = (first + (lane < count ? lane : count - 1)) * size % period;
        if (type == FLOAT32)
            for (int i = 0; i < size; ++i) bits[i][lane] = ((const int32_t *)values)[start + i];
        else
            for (int i = 0; i < size; ++i) bits[i][lane] = ((const uint16_t *)values)[start + i];
    }
    for (int i = 0; i < size; ++i)
        x[i] = type == FLOAT32 ? (Floats)bits[i] : type == BFLOAT16 ? (Floats)(bits[i] << 16) : from_half(bits[i]);
}

/* The most lanes that this processor has instructions for. */
int localq_lanes(void)
{
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx512f")) return 16;
    if (__builtin_cpu_supports("avx2")) return 8;
#endif
    return 4;
}
