#!/bin/sh
# Compares localq's kernels with ggml's quantizers on arm64, both cross-compiled and run by an emulator. Debian:
#
#     apt-get install gcc-aarch64-linux-gnu qemu-user
#     sh tests/conversion/compare_on_arm.sh LLAMA_CPP_SOURCE ["flags of ggml"] [blocks]
#
# Prints, by type and importance, how many blocks differ. The compiler contracts a * b + c into one operation by default
# on arm64, so the bytes depend on ggml's flags; localq's own never contract. With "-ffp-contract=off" none may differ.
# Where blocks differ, the comparison that localq makes before it uses the kernels has to see it.
set -e
source=$1 flags=${2--ffp-contract=off} blocks=${3-2000}
here=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
cat > "$folder/compare.c" <<'C'
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
size_t ggml_quantize_chunk(int type, const float *x, void *y, int64_t start, int64_t rows, int64_t columns, const float *q);
int64_t localq_quantize(int type, int source, const void *x, void *y, int64_t rows, int64_t columns, const float *q,
                        void *ggml);
void ggml_critical_section_start(void) {} /* ggml-threading.cpp: there is one thread */
void ggml_critical_section_end(void) {}
static uint64_t state = 1;
static double uniform(void) { return ((state = state * 6364136223846793005u + 1442695040888963407u) >> 11) * 0x1p-53; }
static float normal(void) { return (float)(sqrt(-2 * log(uniform() + 1e-300)) * cos(6.283185307179586 * uniform())); }
int main(int count, char **given)
{
    static const struct { const char *name; int type, weights, bytes; } types[] = {
        {"q8_0", 8, 32, 34}, {"q2_K", 10, 256, 84}, {"q3_K", 11, 256, 110}, {"q4_K", 12, 256, 144},
        {"q5_K", 13, 256, 176}, {"q6_K", 14, 256, 210}, {"iq4_nl", 20, 32, 18}, {"iq4_xs", 23, 256, 136},
    };
    int blocks = count > 1 ? atoi(given[1]) : 2000;
    for (unsigned t = 0; t < sizeof types / sizeof *types; ++t)
        for (int weighted = 0; weighted < 2; ++weighted) {
            int differing = 0;
            for (int block = 0; block < blocks; ++block) {
                float x[256], q[256];
                uint8_t own[2048], theirs[2048];
                double size = pow(10, 8 * uniform() - 6), offset = block % 3 ? 0 : normal(), sparse = block % 5 ? 1 : uniform();
                for (int i = 0; i < 256; ++i) {
                    x[i] = uniform() < sparse ? (float)((normal() + offset) * size) : 0;
                    if (block % 2) x[i] *= (float)pow(10, 3 * uniform() - 3); /* exponents differ within the block */
                    q[i] = (float)exp(2 * normal());
                }
                ggml_quantize_chunk(types[t].type, x, theirs, 0, 1, 256, weighted ? q : NULL);
                localq_quantize(types[t].type, 0, x, own, 1, 256, weighted ? q : NULL, ggml_quantize_chunk);
                differing += memcmp(own, theirs, 256 / types[t].weights * types[t].bytes) != 0;
            }
            printf("%-7s importance %d: %d of %d differ\n", types[t].name, weighted, differing, blocks);
        }
}
C
cc=${CC-aarch64-linux-gnu-gcc}
$cc -O2 -ffp-contract=off -fwrapv -DLANES=4 -c "$here/localq/conversion/kquants.c" -o "$folder/kquants.o"
: > "$folder/ggml-version.h" # which ggml's own build writes
for file in ggml-quants ggml; do
    $cc -O3 -DNDEBUG -D_GNU_SOURCE -DGGML_VERSION='""' -DGGML_COMMIT='""' $flags -w -I "$folder" -I "$source/ggml/include" \
        -I "$source/ggml/src" -c "$source/ggml/src/$file.c" -o "$folder/$file.o"
done
$cc -O2 "$folder"/compare.c "$folder"/*.o -static -Wl,--unresolved-symbols=ignore-all -lm -lpthread -o "$folder/compare"
qemu-aarch64 "$folder/compare" "$blocks"
