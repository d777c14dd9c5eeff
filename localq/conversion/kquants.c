/* Quantizes many blocks of weights at a time, to the bytes that ggml writes.

   ggml searches each block's scales with scalar code, one block after the other. Here every lane of a vector holds
   another block: `x[i]` are the weights number i of LANES blocks. Each lane does the same float operations in the same
   order as ggml does, so it gets the same bits; a branch of ggml becomes a choice by mask. This holds as long as no
   compiler fuses or reorders float operations, here or in ggml, which is why the caller compares both before it
   trusts a build (quantizer.py).

   What ordinary weights hardly ever need is not rebuilt: such a lane is called unusual, and ggml quantizes its block.

   Formats and order of operations: ggml-quants.c and ggml-common.h of llama.cpp, by the names given at each function. */

#define MOST 256 /* weights in a block */
#include "vectors.h"

#define SMALLEST_GROUP 1e-15f /* GROUP_MAX_EPS: below, ggml takes a group for zeros */
#define LARGEST_USUAL 1e5f /* so that not even sixth powers overflow */
#define SMALLEST_USUAL 1e-30f

static inline Ints choose_ints(Ints mask, Ints a, Ints b) { return (mask & a) | (~mask & b); }
static inline Floats where(Ints mask, Floats a) { return (Floats)(mask & (Ints)a); }
static inline Floats to_floats(Ints a) { return __builtin_convertvector(a, Floats); }

static int any(Ints mask)
{
    int32_t found = 0;
    for (int lane = 0; lane < LANES; ++lane) found |= mask[lane];
    return found != 0;
}

/* nearest_int: the bits of the sum hold the integer; beyond 2^22 they wrap, as in ggml. */
static inline Ints nearest(Floats a) { return ((Ints)(a + 12582912.0f) & 0x7fffff) - 0x400000; }

/* ---- Searches for the scale of a group of weights ---- */

static Floats sum_of_squares(int count, const Floats *x)
{
    Floats sum = zeros;
    for (int i = 0; i < count; ++i) sum += x[i] * x[i];
    return sum;
}

/* The inverse scales to try: (first + step * number + top) / range. */
typedef struct {
    float first, step;
    int count, of_magnitudes; /* whether errors are not squared */
} Tries;

/* make_qkx2_quants, and make_qkx3_quants with weights: codes from 0 to `top`. Returns the scale. */
static Floats fit_offset(int count, float top, const Floats *x, const Floats *w, const Tries *tries, Floats *minimum,
                         Ints *unusual)
{
    Floats codes[32], low = x[0], high = x[0], sum_w = w[0], sum_x = w[0] * x[0];
    for (int i = 1; i < count; ++i) {
        low = smaller(x[i], low);
        high = larger(x[i], high);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    low = smaller(zeros, low);
    Ints flat = high == low;
    Floats range = choose(flat, all(1), high - low), least_range = range * 0x1.0p-10f;
    *unusual |= range < SMALLEST_USUAL;
    Floats iscale = top / range, best_scale = 1 / iscale, best_error = zeros;
    for (int i = 0; i < count; ++i) {
        Floats code = larger(zeros, smaller(all(top), rounded(iscale * (x[i] - low))));
        Floats error = best_scale * code + low - x[i];
        best_error += w[i] * (tries->of_magnitudes ? magnitude(error) : error * error);
    }
    for (int number = 0; number <= tries->count; ++number) {
        iscale = (tries->first + tries->step * number + top) / range;
        Floats sum_l = zeros, sum_l2 = zeros, sum_xl = zeros;
        for (int i = 0; i < count; ++i) {
            Floats code = larger(zeros, smaller(all(top), rounded(iscale * (x[i] - low))));
            Floats weighted = w[i] * code;
            codes[i] = code;
            sum_l += weighted;
            sum_l2 += weighted * code;
            sum_xl += weighted * x[i];
        }
        Floats determinant = sum_w * sum_l2 - sum_l * sum_l;
        Floats scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        Floats next_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant, total = zeros;
        scale = choose(next_low > 0, sum_xl / sum_l2, scale);
        next_low = choose(next_low > 0, zeros, next_low);
        for (int i = 0; i < count; ++i) {
            Floats error = scale * codes[i] + next_low - x[i];
            total += w[i] * (tries->of_magnitudes ? magnitude(error) : error * error);
        }
        Ints better = (determinant > 0) & (total < best_error);
        best_error = choose(better, total, best_error);
        best_scale = choose(better, scale, best_scale);
        low = choose(better, next_low, low); /* the next try starts from it */
        range = choose(flat, all(1), high - low);
        *unusual |= range < least_range; /* `rounded` would leave its range */
    }
    *unusual |= best_scale < 0;
    *minimum = -low;
    return where(~flat, best_scale);
}

/* The sums over a group of weight x value x code, and of weight x code x code. */
typedef struct { Floats xl, l2; } Sums;

static inline void add(Sums *sums, Floats w, Floats x, Floats code)
{
    sums->xl += w * x * code; /* from left to right, like all products here */
    sums->l2 += w * code * code;
}

/* The last loop of make_qp_quants and of make_q3_quants: one code after the other is changed where that helps. Where
   codes can't be negative (`least` is 0) they could wrap in ggml. Returns the scale. */
static Floats improve_in_turns(int count, const Floats *x, const Floats *w, int32_t least, int32_t top, Sums sums,
                               Ints *codes, Ints *unusual)
{
    for (int turn = 0, changed = 1; turn < 5 && changed; ++turn) {
        changed = 0;
        for (int i = 0; i < count; ++i) {
            Floats code = to_floats(codes[i]);
            Sums other = {sums.xl - w[i] * x[i] * code, sums.l2 - w[i] * code * code};
            Ints next = nearest(x[i] * other.l2 / other.xl);
            Ints usable = (other.xl > 0) & ((other.l2 > 0) | -(least < 0));
            if (least == 0) *unusual |= usable & (next < 0);
            next = limited(next, least, top);
            Ints better = usable & (next != codes[i]);
            add(&other, w[i], x[i], to_floats(next));
            better &= (other.l2 > 0) & (other.xl * other.xl * sums.l2 > sums.xl * sums.xl * other.l2);
            codes[i] = choose_ints(better, next, codes[i]);
            sums.xl = choose(better, other.xl, sums.xl);
            sums.l2 = choose(better, other.l2, sums.l2);
            changed |= any(better);
        }
    }
    return where(sums.l2 > 0, sums.xl / sums.l2);
}

/* make_qp_quants: scales that are not negative, to integers up to `top`. Returns their scale. */
static Floats fit_positive(int count, int32_t top, const Floats *x, const Floats *w, Ints *codes, Ints *unusual)
{
    Floats most = zeros, best_error = zeros, iscale = zeros;
    for (int i = 0; i < count; ++i) most = larger(most, x[i]);
    Ints nothing = most < SMALLEST_GROUP;
    most = choose(nothing, all(1), most);
    for (int number = 0; number < 9; ++number) {
        int shift = number == 0 ? 0 : number <= 4 ? number - 5 : number - 4; /* 0 first, then -4 to 4 */
        Floats tried = (0.1f * shift + top) / most, scale = 1 / tried, error = zeros;
        for (int i = 0; i < count; ++i) {
            Floats difference = x[i] - scale * smaller(rounded(tried * x[i]), all(top));
            error += w[i] * difference * difference;
        }
        Ints better = (error < best_error) | -(number == 0);
        best_error = choose(better, error, best_error);
        iscale = choose(better, tried, iscale);
    }
    Sums sums = {zeros, zeros};
    for (int i = 0; i < count; ++i) {
        codes[i] = limited(nearest(iscale * x[i]), 0, top);
        add(&sums, w[i], x[i], to_floats(codes[i]));
    }
    Floats scale = improve_in_turns(count, x, w, 0, top, sums, codes, unusual);
    for (int i = 0; i < count; ++i) codes[i] &= ~nothing;
    return where(~nothing, scale);
}

/* The value of the largest magnitude, the first one of equals; 1 where none reaches `least`. */
static Floats extreme(int count, const Floats *x, float least, Ints *nothing)
{
    Floats most = zeros, value = zeros;
    for (int i = 0; i < count; ++i) {
        Floats size = magnitude(x[i]);
        value = choose(size > most, x[i], value);
        most = larger(size, most);
    }
    *nothing = most < least;
    return choose(*nothing, all(1), value);
}

/* make_q3_quants. Returns the scale. */
static Floats fit_in_turns(const Floats *x)
{
    Ints nothing, codes[16];
    Floats squares[16], iscale = -4.0f / extreme(16, x, SMALLEST_GROUP, &nothing);
    Sums sums = {zeros, zeros};
    for (int i = 0; i < 16; ++i) {
        squares[i] = x[i] * x[i];
        codes[i] = limited(nearest(iscale * x[i]), -4, 3);
        add(&sums, squares[i], x[i], to_floats(codes[i]));
    }
    return where(~nothing, improve_in_turns(16, x, squares, -4, 3, sums, codes, 0));
}

/* The sixteen levels of IQ4_NL and IQ4_XS (kvalues_iq4nl). Of two, ggml takes the upper one from the middle on. */
static const float levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* best_index_int8, and the level of that number. */
static inline Floats nearest_level(Floats a, Ints *number)
{
    Floats level = all(levels[0]);
    *number = (Ints)zeros;
    for (int i = 1; i < 16; ++i) {
        Ints above = a >= (levels[i - 1] + levels[i]) / 2;
        level += where(above, all(levels[i] - levels[i - 1]));
        *number -= above; /* a mask is -1 */
    }
    return level;
}

/* make_qx_quants with rmse_type 1: codes from -top to top - 1, the nearest integers to inverse * x. With `curved` the
   search of quantize_row_iq4_nl_impl, for the nearest level. `w` may be NULL: squares. Returns the scale. */
static inline __attribute__((always_inline)) Floats fit(int curved, int count, float top, const Floats *x,
                                                        const Floats *w, Floats *inverse)
{
    Ints nothing, number_of_level;
    Floats value = extreme(count, x, SMALLEST_GROUP, &nothing), weights[32], best = zeros, found = zeros;
    *inverse = zeros;
    for (int i = 0; i < count; ++i) weights[i] = w ? w[i] : x[i] * x[i];
    int most = curved ? 7 : 9; /* a first try, then shifts from -most to most; 0 among them if curved */
    for (int number = 0; number <= 2 * most + curved; ++number) {
        int shift = number == 0 ? 0 : number - 1 - most + (!curved && number > most);
        Floats iscale = curved ? (shift - top) / value : -(top + 0.1f * shift) / value;
        if (curved && number == 0) iscale = 1 / (value / top);
        Sums sums = {zeros, zeros};
        for (int i = 0; i < count; ++i) {
            Floats scaled = iscale * x[i];
            Floats code = larger(all(-top), smaller(all(top - 1), rounded(scaled)));
            if (curved) code = nearest_level(scaled, &number_of_level);
            sums.xl += curved ? weights[i] * code * x[i] : weights[i] * x[i] * code;
            sums.l2 += weights[i] * code * code;
        }
        Ints better = (sums.l2 > 0) & ((sums.xl * sums.xl > best * sums.l2) | -(number == 0));
        *inverse = choose(better | -(number == 0), iscale, *inverse);
        found = choose(better, sums.xl / sums.l2, found);
        best = choose(better, found * sums.xl, best);
    }
    *inverse = where(~nothing, *inverse);
    return where(~nothing, found);
}

/* ---- Blocks: `x` to bytes; `w` are weights of the errors from an importance matrix, or NULL ---- */

typedef struct Format {
    int type, weights, bytes; /* the number in enum ggml_type; of a block */
    void (*quantize)(const struct Format *format, const Floats *x, const Floats *w, Ints *bytes, Ints *unusual);
    int group; /* weights with a scale of their own */
    float mean; /* times the sum of squares, for `w` */
    int top, top_scale; /* the largest code of a weight, and of a scale */
    Tries plain, weighted;
} Format;

static void put_half(Ints half, Ints *bytes) { bytes[0] = half & 255, bytes[1] = half >> 8; }

/* Codes of four bits: the first half of each `span` in the low bits, the second half in the high ones. */
static void put_nibbles(int count, int span, const Ints *codes, Ints *bytes)
{
    for (int start = 0; start < count; start += span)
        for (int i = start; i < start + span / 2; ++i) *bytes++ = (codes[i] & 15) | (codes[i + span / 2] & 15) << 4;
}

/* Codes of two bits, 128 in 32 bytes. */
static void put_pairs(const Ints *codes, Ints *bytes)
{
    for (int start = 0; start < 256; start += 128)
        for (const Ints *c = codes + start; c < codes + start + 32; ++c)
            *bytes++ = (c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 | (c[96] & 3) << 6;
}

/* One bit of each code: 8 in a byte, from eight rows of 32. */
static void put_bits(const Ints *codes, int bit, Ints *bytes)
{
    for (int i = 0; i < 32; ++i) {
        bytes[i] = (Ints)zeros;
        for (int row = 0; row < 8; ++row) bytes[i] |= (codes[32 * row + i] >> bit & 1) << row;
    }
}

/* The last step of all K-quants: (x + minimum) / d. Where the scale d of a group became 0, ggml keeps the codes of its
   search; they are not kept here, so that only zeros are usual then. */
static void code_group(int count, const Floats *x, Floats minimum, Floats d, int32_t least, int32_t top, Ints *codes,
                       Ints *unusual)
{
    Ints bits = (Ints)zeros;
    for (int i = 0; i < count; ++i) {
        codes[i] = (limited(nearest((x[i] + minimum) / d), least, top) - least) & (d != 0);
        bits |= (Ints)magnitude(x[i]);
    }
    *unusual |= (d == 0) & (bits != 0);
}

/* Scales or minima, with weights or without, to integers up to `top`; returns their own scale in half precision. */
static Ints quantize_scales(int count, int top, const Floats *x, const Floats *w, Ints *codes, Ints *unusual)
{
    if (w) return to_half(fit_positive(count, top, x, w, codes, unusual));
    Floats most = zeros;
    for (int j = 0; j < count; ++j) most = larger(x[j], most);
    Floats inverse = where(most > 0, (float)top / most);
    for (int j = 0; j < count; ++j) codes[j] = limited(nearest(inverse * x[j]), 0, top);
    return to_half(most / (float)top);
}

typedef struct { Ints codes[256], scales[16], minima[16], d, dmin; } Coded; /* d and dmin in half precision */

/* quantize_row_q{2,4,5}_K_ref, and _impl where weights are given. */
static void code_with_minima(const Format *format, const Floats *x, const Floats *w, Coded *coded, Ints *unusual)
{
    int size = format->group, groups = 256 / size;
    Floats scales[16] = {zeros}, minima[16] = {zeros}, sums[16] = {zeros}, own[32];
    for (int j = 0; j < groups; ++j) {
        const Floats *group = x + j * size, *weights = w ? w + j * size : own;
        Floats added = !w && size == 32 ? root(sum_of_squares(32, group) / 32.0f) : zeros;
        for (int i = 0; i < size && !w; ++i) own[i] = added + magnitude(group[i]);
        for (int i = 0; i < size && w; ++i) sums[j] += weights[i];
        const Tries *tries = w ? &format->weighted : &format->plain;
        scales[j] = fit_offset(size, format->top, group, weights, tries, &minima[j], unusual);
    }
    coded->d = quantize_scales(groups, format->top_scale, scales, w ? sums : 0, coded->scales, unusual);
    coded->dmin = quantize_scales(groups, format->top_scale, minima, w ? sums : 0, coded->minima, unusual);
    for (int j = 0; j < groups; ++j) {
        Floats d = from_half(coded->d) * to_floats(coded->scales[j]);
        Floats minimum = from_half(coded->dmin) * to_floats(coded->minima[j]);
        code_group(size, x + j * size, minimum, d, 0, format->top, coded->codes + j * size, unusual);
    }
}

static void q2_K(const Format *format, const Floats *x, const Floats *w, Ints *bytes, Ints *unusual)
{
    Coded coded;
    code_with_minima(format, x, w, &coded, unusual);
    for (int j = 0; j < 16; ++j) bytes[j] = coded.scales[j] | coded.minima[j] << 4;
    put_pairs(coded.codes, bytes + 16);
    put_half(coded.d, bytes + 80);
    put_half(coded.dmin, bytes + 82);
}

/* Q4_K, and Q5_K with its upper bits apart. Eight scales and minima in twelve bytes: see get_scale_min_k4. */
static void q4_K(const Format *format, const Floats *x, const Floats *w, Ints *bytes, Ints *unusual)
{
    Coded coded;
    Ints *scales = coded.scales, *minima = coded.minima;
    code_with_minima(format, x, w, &coded, unusual);
    put_half(coded.d, bytes);
    put_half(coded.dmin, bytes + 2);
    for (int j = 0; j < 4; ++j) {
        bytes[j + 4] = scales[j] | scales[j + 4] >> 4 << 6;
        bytes[j + 8] = minima[j] | minima[j + 4] >> 4 << 6;
        bytes[j + 12] = (scales[j + 4] & 15) | (minima[j + 4] & 15) << 4;
    }
    if (format->top == 31) put_bits(coded.codes, 4, bytes + 16);
    put_nibbles(256, 64, coded.codes, bytes + format->bytes - 128);
}

/* quantize_row_q3_K_ref, and _impl where weights are given. */
static void q3_K(const Format *format, const Floats *x, const Floats *w, Ints *bytes, Ints *unusual)
{
    Ints codes[256], scales[16], nothing;
    Floats found[16], sums[16] = {zeros}, scale, inverse;
    for (int j = 0; j < 16; ++j) {
        for (int i = 0; i < 16 && w; ++i) sums[j] += w[16 * j + i];
        found[j] = w ? fit(0, 16, 4, x + 16 * j, w + 16 * j, &inverse) : fit_in_turns(x + 16 * j);
    }
    if (w) {
        scale = fit(0, 16, 32, found, sums, &inverse);
        nothing = inverse == 0;
    } else {
        inverse = -32.0f / extreme(16, found, 1e-45f, &nothing);
        scale = where(~nothing, 1 / inverse);
    }
    Ints half = to_half(scale);
    for (int j = 0; j < 16; ++j) {
        scales[j] = (limited(nearest(inverse * found[j]), -32, 31) + 32) & ~nothing;
        Floats d = from_half(half) * to_floats(scales[j] - 32);
        code_group(16, x + 16 * j, zeros, d, -4, 3, codes + 16 * j, unusual);
    }
    put_bits(codes, 2, bytes);
    put_pairs(codes, bytes + 32);
    put_nibbles(16, 16, scales, bytes + 96);
    for (int j = 0; j < 4; ++j)
        bytes[104 + j] = scales[j] >> 4 | scales[j + 4] >> 4 << 2 | scales[j + 8] >> 4 << 4 | scales[j + 12] >> 4 << 6;
    put_half(half, bytes + 108);
}

/* quantize_row_q6_K_ref, and _impl where weights are given. */
static void q6_K(const Format *format, const Floats *x, const Floats *w, Ints *bytes, Ints *unusual)
{
    Ints codes[256], nothing;
    Floats found[16], inverse;
    for (int j = 0; j < 16; ++j) found[j] = fit(0, 16, 32, x + 16 * j, w ? w + 16 * j : 0, &inverse);
    inverse = -128.0f / extreme(16, found, SMALLEST_GROUP, &nothing);
    Ints half = to_half(1 / inverse) & ~nothing;
    for (int j = 0; j < 16; ++j) {
        Ints scale = limited(nearest(inverse * found[j]), -128, 127) & ~nothing;
        code_group(16, x + 16 * j, zeros, from_half(half) * to_floats(scale), -32, 31, codes + 16 * j, unusual);
        bytes[192 + j] = scale & 255;
    }
    for (int start = 0; start < 2; ++start) {
        put_nibbles(128, 128, codes + 128 * start, bytes + 64 * start);
        for (int i = 0; i < 128; ++i) codes[128 * start + i] >>= 4;
    }
    put_pairs(codes, bytes + 128);
    put_half(half, bytes + 208);
}

/* quantize_row_q8_0_ref; roundf takes halves away from zero. */
static void q8_0(const Format *format, const Floats *x, const Floats *w, Ints *bytes, Ints *unusual)
{
    Floats most = zeros;
    for (int i = 0; i < 32; ++i) most = larger(most, magnitude(x[i]));
    Floats d = most / 127.0f, inverse = where(d > 0, 1 / d);
    put_half(to_half(d), bytes);
    for (int i = 0; i < 32; ++i) {
        Floats value = smaller(magnitude(x[i] * inverse), all(127));
        Ints whole = __builtin_convertvector(value, Ints);
        whole -= value - to_floats(whole) >= 0.5f; /* a mask is -1 */
        bytes[i + 2] = choose_ints(x[i] < 0, -whole, whole) & 255;
    }
}

/* quantize_row_iq4_nl_impl: IQ4_NL with one group, IQ4_XS with eight whose scales are quantized in their turn. */
static void iq4(const Format *format, const Floats *x, const Floats *w, Ints *bytes, Ints *unusual)
{
    int count = format->weights, groups = count / 32;
    Ints codes[256], numbers[8], upper = (Ints)zeros, nothing;
    Floats scales[8], inverse, d = fit(1, 32, 127, x, w, &inverse);
    for (int j = 1; j < groups; ++j) scales[j] = fit(1, 32, 127, x + 32 * j, w ? w + 32 * j : 0, &inverse);
    scales[0] = d;
    if (groups == 8) {
        d = extreme(8, scales, 1e-45f, &nothing);
        d = -where(~nothing, d) / 32.0f;
    }
    for (int j = 0; j < groups; ++j) {
        numbers[j] = limited(nearest(where(d != 0, 1 / d) * scales[j]), -32, 31);
        Floats scale = groups == 1 ? d : d * to_floats(numbers[j]);
        inverse = where(scale != 0, 1 / scale);
        for (int i = 32 * j; i < 32 * j + 32; ++i) nearest_level(inverse * x[i], &codes[i]);
        numbers[j] += 32;
        upper |= numbers[j] >> 4 << 2 * j;
    }
    put_half(to_half(d), bytes);
    if (groups == 8) put_half(upper, bytes + 2);
    if (groups == 8) put_nibbles(8, 2, numbers, bytes + 4);
    put_nibbles(count, 32, codes, bytes + format->bytes - count / 2);
}

static const Format formats[] = {
    {8, 32, 34, q8_0, 32, 0},
    {10, 256, 84, q2_K, 16, 1.0f / 256, 3, 15, {-0.5f, 0.1f, 15, 1}, {-0.9f, 0.05f, 36, 0}},
    {11, 256, 110, q3_K, 16, 2.0f / 256},
    {12, 256, 144, q4_K, 32, 2.0f / 256, 15, 63, {-1, 0.1f, 20, 0}, {-0.9f, 0.05f, 36, 0}},
    {13, 256, 176, q4_K, 32, 2.0f / 256, 31, 63, {-0.5f, 0.1f, 15, 0}, {-0.9f, 0.05f, 36, 0}},
    {14, 256, 210, q6_K, 16, 0},
    {20, 32, 18, iq4, 32, 2.0f / 32},
    {23, 256, 136, iq4, 32, 2.0f / 256},
};

/* ---- All blocks of some rows ---- */

static Ints unusual_sizes(int count, const Floats *x)
{
    Floats most = zeros;
    Ints unusual = (Ints)zeros;
    for (int i = 0; i < count; ++i) {
        most = larger(most, magnitude(x[i]));
        unusual |= ~(magnitude(x[i]) < LARGEST_USUAL); /* NaN is not smaller */
    }
    return unusual | ((most > 0) & (most < SMALLEST_USUAL));
}

/* From bytes in lanes to bytes that follow each other in `blocks`. */
static void store(const Ints *bytes, int size, int count, uint8_t *blocks)
{
    Ints words[MOST / 4];
    for (int i = 0; i < size; i += 4) {
        words[i / 4] = bytes[i] | bytes[i + 1] << 8;
        if (i + 2 < size) words[i / 4] |= bytes[i + 2] << 16 | bytes[i + 3] << 24;
    }
    for (int lane = 0; lane < count; ++lane, blocks += size)
        for (int i = 0; i < size; i += 4) memcpy(blocks + i, (char *)&words[i / 4] + 4 * lane, i + 2 < size ? 4 : 2);
}

typedef size_t Ggml(int type, const float *x, void *blocks, int64_t start, int64_t rows, int64_t columns,
                    const float *importance);

/* Quantizes rows as ggml_quantize_chunk does, which is given for the unusual blocks. Returns how many those were, or
   -1 for a type that is not known here. */
int64_t localq_quantize(int type, int source, const void *weights, void *blocks, int64_t rows, int64_t columns,
                        const float *importance, Ggml *ggml)
{
    const Format *format = formats, *end = formats + sizeof formats / sizeof *formats;
    while (format < end && format->type != type) ++format;
    if (format == end) return -1;
    int64_t size = format->weights, total = rows * columns / size, by_ggml = 0;
    for (int64_t first = 0; first < total; first += LANES) {
        Floats x[MOST], w[MOST];
        Ints bytes[MOST];
        int count = total - first < LANES ? (int)(total - first) : LANES;
        load(weights, source, first, count, size, rows * columns, x);
        Ints unusual = unusual_sizes(size, x);
        if (importance) {
            load(importance, FLOAT32, first, count, size, columns, w);
            unusual |= unusual_sizes(size, w);
            Floats mean = sum_of_squares(size, x) * format->mean;
            for (int i = 0; i < size && format->mean; ++i) w[i] *= root(mean + x[i] * x[i]);
        }
        format->quantize(format, x, importance ? w : 0, bytes, &unusual);
        uint8_t *target = (uint8_t *)blocks + first * format->bytes;
        store(bytes, format->bytes, count, target);
        for (int lane = 0; lane < count; ++lane, target += format->bytes)
            if (unusual[lane]) {
                float block[MOST];
                for (int i = 0; i < size; ++i) block[i] = x[i][lane];
                ggml(type, block, target, 0, 1, size, importance ? importance + (first + lane) * size % columns : 0);
                ++by_ggml;
            }
    }
    return by_ggml;
}
