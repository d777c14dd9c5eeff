/* Searches the scale and the bias of each group of weights in MLX's affine quantization: w' = scale * code + bias.

   Every lane of a vector holds another group: `x[i]` are the weights number i of LANES groups. All float operations are
   done in the same order as in mlx_search.py, which gives the same bits without a compiler.

   The start is MLX's own choice (quantize in mlx/backend/cpu/quantized.cpp). Then the range of the codes is narrowed at
   both ends by parts of a step, the weights are rounded to codes, and weighted least squares give scale and bias, which
   are rounded to the type that they are stored in before their error is measured. */

#define MOST 128 /* weights in a group */
#include "vectors.h"

#define SMALLEST_SCALE 1e-7f /* MLX's */
#define TURNS 2 /* of least squares, after the search */
static const float ends[] = {0, 0.4f, 0.8f}; /* steps by which each end of the range is narrowed */

/* ---- The types that weights, scales and biases are stored in ---- */

/* The nearest value of the type. Infinities and NaN become NaN. */
static Floats stored(int type, Floats a)
{
    Floats value = a;
    if (type == FLOAT16) value = from_half(to_half(a));
    if (type == BFLOAT16) value = (Floats)(((Ints)a + 0x7fff + (((Ints)a >> 16) & 1)) & ~0xffff);
    Ints finite = (magnitude(a) <= (type == FLOAT16 ? 65519.996f : 3.4028234e38f)) & (magnitude(value) <= 3.4028234e38f);
    return choose(finite, value, (Floats)(finite | 0x7fc00000));
}

static inline Floats inverse_power(Floats power) { return (Floats)(0x7f000000 - (Ints)power); }

/* Divides by a power of two, so that the largest magnitude of each lane is near 1. Returns that power. */
static Floats normalized(int size, Floats *x)
{
    Floats most = zeros;
    for (int i = 0; i < size; ++i) most = larger(most, magnitude(x[i]));
    Floats unit = smaller(larger((Floats)((Ints)most & 0x7f800000), all(0x1.0p-126f)), all(0x1.0p+126f));
    Floats inverse = inverse_power(unit);
    for (int i = 0; i < size; ++i) x[i] = x[i] * inverse + 0.0f; /* no negative zeros */
    return unit;
}

/* ---- The search ---- */

typedef struct {
    int size, type;
    float top; /* the largest code */
    Floats x[MOST], w[MOST], sum_w; /* normalized weights, and what their squared errors count */
    Floats unit, inverse_unit; /* what `x` was divided by: a power of two */
} Group;

typedef struct { Floats scale, bias, error; } Fit;

/* The sums over a group of weight x rest, weight x rest x code, and so on. */
typedef struct { Floats rest, rest_code, code, code_code; } Sums;

static inline Floats code_of(const Group *g, Floats exact) { return rounded(larger(zeros, smaller(all(g->top), exact))); }

/* Rounds to codes. Gives the weighted squared error of the values that MLX will compute, or the sums. */
static inline __attribute__((always_inline)) void measure(const Group *g, Fit *fit, Sums *sums)
{
    Floats inverse = 1 / fit->scale, error = zeros, rest_sum = zeros, rest_code = zeros, code_sum = zeros, squares = zeros;
    for (int i = 0; i < g->size; ++i) {
        Floats exact = (g->x[i] - fit->bias) * inverse, code = code_of(g, exact);
        if (sums) {
            Floats weighted = g->w[i] * (exact - code), weighted_code = g->w[i] * code;
            rest_sum += weighted;
            rest_code += weighted * code;
            code_sum += weighted_code;
            squares += weighted_code * code;
        } else {
            Floats difference = g->x[i] - (fit->scale * code + fit->bias);
            error += g->w[i] * difference * difference;
        }
    }
    if (sums) *sums = (Sums){rest_sum, rest_code, code_sum, squares};
    else fit->error = error;
}

/* Weighted least squares for the codes of `fit`: the stored scale, then the bias that is best with it. */
static Fit least_squares(const Group *g, Fit fit, Sums sums)
{
    Floats determinant = g->sum_w * sums.code_code - sums.code * sums.code;
    Floats slope = (g->sum_w * sums.rest_code - sums.code * sums.rest) / determinant;
    slope = choose(determinant > 0, slope, zeros);
    Floats scale = stored(g->type, (fit.scale + fit.scale * slope) * g->unit) * g->inverse_unit;
    Floats bias = fit.bias + (fit.scale * sums.rest + (fit.scale - scale) * sums.code) / g->sum_w;
    return (Fit){scale, stored(g->type, bias * g->unit) * g->inverse_unit, zeros};
}

/* Keeps `fit` in the lanes where it is better and its largest value is finite. */
static void keep_better(const Group *g, Fit fit, Fit *best)
{
    Ints better = (fit.error < best->error) & (magnitude(fit.scale * g->top) * g->unit <= 3.4028234e38f);
    best->scale = choose(better, fit.scale, best->scale);
    best->bias = choose(better, fit.bias, best->bias);
    best->error = choose(better, fit.error, best->error);
}

/* What mx.quantize chooses: the end of larger magnitude is met exactly, and so is zero. */
static Fit choice_of_mlx(const Group *g, Floats low, Floats high)
{
    Ints below = magnitude(low) > magnitude(high);
    Floats scale = larger((high - low) / g->top, SMALLEST_SCALE * g->inverse_unit), edge = choose(below, low, high);
    scale = choose(below, scale, -scale);
    Floats code = edge / scale;
    code = choose(magnitude(code) < 0x1.0p+22f, rounded(code), code);
    scale = choose(code != 0, edge / code, scale);
    Floats bias = choose(code != 0, edge, zeros);
    return (Fit){stored(g->type, scale * g->unit) * g->inverse_unit, stored(g->type, bias * g->unit) * g->inverse_unit, zeros};
}

static Fit search(const Group *g)
{
    Floats low = g->x[0], high = g->x[0];
    for (int i = 1; i < g->size; ++i) low = smaller(low, g->x[i]), high = larger(high, g->x[i]);
    Fit best = {zeros, stored(g->type, low * g->unit) * g->inverse_unit, all(__builtin_inff())};
    Fit fit = choice_of_mlx(g, low, high);
    measure(g, &fit, 0);
    keep_better(g, fit, &best);
    Sums sums;
    Floats step = (high - low) / g->top;
    Ints below = magnitude(low) > magnitude(high); /* the bias is the smaller end, which is rounded less */
    for (int lower = 0; lower < 3; ++lower)
        for (int upper = 0; upper < 3; ++upper) {
            Floats from = low + ends[lower] * step, to = high - ends[upper] * step, scale = (to - from) / g->top;
            fit = (Fit){choose(below, -scale, scale), choose(below, to, from), zeros};
            measure(g, &fit, &sums);
            fit = least_squares(g, fit, sums);
            measure(g, &fit, 0);
            keep_better(g, fit, &best);
        }
    for (int turn = 0; turn < TURNS; ++turn) {
        fit = best;
        measure(g, &fit, &sums);
        fit = least_squares(g, fit, sums);
        measure(g, &fit, 0);
        keep_better(g, fit, &best);
    }
    return best;
}

/* ---- All groups of some rows ---- */

static void store_value(int type, void *values, int64_t place, uint32_t bits)
{
    if (type == FLOAT32) ((uint32_t *)values)[place] = bits;
    else ((uint16_t *)values)[place] = bits;
}

/* The codes of a group are one stream of bits. */
static void pack(const Group *g, Fit fit, int bits, int64_t first, int count, uint32_t *packed)
{
    Ints words[MOST / 4 + 1];
    int per_group = g->size * bits / 32;
    Floats inverse = choose(fit.scale != 0, 1 / fit.scale, zeros);
    memset(words, 0, sizeof words);
    for (int i = 0; i < g->size; ++i) {
        Ints code = __builtin_convertvector(code_of(g, (g->x[i] - fit.bias) * inverse), Ints);
        int word = i * bits / 32, shift = i * bits % 32;
        words[word] |= code << shift;
        if (shift + bits > 32) words[word + 1] |= code >> (32 - shift);
    }
    for (int lane = 0; lane < count; ++lane)
        for (int i = 0; i < per_group; ++i) packed[(first + lane) * per_group + i] = words[i][lane];
}

/* Quantizes (rows, columns) of a type to packed codes, and to scales and biases of the same type. `importance` has a
   factor, 0 or more and finite, for each column. */
void localq_search(int type, int bits, int size, const void *rows, int64_t row_count, int64_t columns,
                   const float *importance, uint32_t *packed, void *scales, void *biases)
{
    int64_t total = row_count * columns / size;
    Group g = {.size = size, .type = type, .top = (1 << bits) - 1};
    for (int64_t first = 0; first < total; first += LANES) {
        int count = total - first < LANES ? (int)(total - first) : LANES;
        load(rows, type, first, count, size, row_count * columns, g.x);
        load(importance, FLOAT32, first, count, size, columns, g.w);
        g.unit = normalized(size, g.x);
        g.inverse_unit = inverse_power(g.unit);
        normalized(size, g.w);
        Floats squares = zeros;
        for (int i = 0; i < size; ++i) squares += g.x[i] * g.x[i];
        Floats mean = squares / (float)size;
        g.sum_w = zeros;
        for (int i = 0; i < size; ++i) {
            g.w[i] *= root(mean + g.x[i] * g.x[i]);
            g.sum_w += g.w[i];
        }
        Fit fit = search(&g);
        pack(&g, fit, bits, first, count, packed);
        Ints scale = (Ints)(fit.scale * g.unit), bias = (Ints)(fit.bias * g.unit);
        if (type == FLOAT16) scale = to_half((Floats)scale), bias = to_half((Floats)bias);
        if (type == BFLOAT16) scale >>= 16, bias >>= 16;
        for (int lane = 0; lane < count; ++lane) {
            store_value(type, scales, first + lane, scale[lane]);
            store_value(type, biases, first + lane, bias[lane]);
        }
    }
}
