// Attention over paged keys and values, float32, any number of query rows of any mixture of sequences.
//
// One row is one token: `row_slot` says whose page table it reads, `row_length` how many keys it sees (its position
// plus one). A prefill is many rows of one slot, a decoding step one row of each; the kernel does not distinguish them.
// Keys lie as [page][kv head][D][16] so that one 512-bit multiply-add serves 16 keys; values as [page][kv head][16][D].
// D must be a multiple of 16. Vectors are the compiler's own (gcc and clang lower them to whatever the machine has).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

static constexpr int PAGE = 16;
typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));

static inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
static inline vec fill(float x) { return vec{} + x; }

// exp(x) for x <= 0 to about 1e-7 relative: 2^n times a polynomial on [-ln2/2, ln2/2] (Cody and Waite's reduction).
static inline vec exponential(vec x) {
    x = x < fill(-87.0f) ? fill(-87.0f) : x;
    const vec shift = fill(12582912.0f);  // adding and subtracting 1.5 * 2^23 rounds to the nearest integer
    vec n = (x * 1.44269504088896341f + shift) - shift;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = fill(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec scale = (__builtin_convertvector(n, ivec) + 127) << 23;
    return p * reinterpret_cast<vec&>(scale);
}

static inline float highest(vec x) {
    float m = x[0];
    for (int j = 1; j < PAGE; j++) m = std::max(m, x[j]);
    return m;
}

static inline float total(vec x) {
    float s = 0;
    for (int j = 0; j < PAGE; j++) s += x[j];
    return s;
}

extern "C" void write_pages(const float* k, const float* v, float* key_pool, float* value_pool, const int32_t* table,
                            int64_t table_stride, const int32_t* row_slot, const int32_t* row_length, int64_t N,
                            int64_t K, int64_t D) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n++) {
        int64_t position = row_length[n] - 1, j = position % PAGE;
        int64_t page = table[row_slot[n] * table_stride + position / PAGE];
        for (int64_t h = 0; h < K; h++) {
            float* keys = key_pool + (page * K + h) * D * PAGE + j;
            float* values = value_pool + ((page * K + h) * PAGE + j) * D;
            for (int64_t d = 0; d < D; d++) keys[d * PAGE] = k[(n * K + h) * D + d];
            for (int64_t d = 0; d < D; d++) values[d] = v[(n * K + h) * D + d];
        }
    }
}

// G query heads that share one key/value head, for one row. Scores of all visible keys, then their weighted values.
template <int G>
static void attend(const float* q, const float* key_pool, const float* value_pool, const int32_t* pages, int64_t stride,
                   int64_t first, int64_t length, int64_t D, float scale, float* scores, int64_t row, float* out) {
    const int64_t from = first / PAGE, to = (length + PAGE - 1) / PAGE;
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vec top[G];
    for (int g = 0; g < G; g++) top[g] = fill(-INFINITY);
    for (int64_t p = from; p < to; p++) {
        const float* keys = key_pool + pages[p] * stride;
        vec even[G] = {}, odd[G] = {};
        for (int64_t d = 0; d < D; d += 2) {
            const vec a = load(keys + d * PAGE), b = load(keys + (d + 1) * PAGE);
            for (int g = 0; g < G; g++) even[g] += q[g * D + d] * a;
            for (int g = 0; g < G; g++) odd[g] += q[g * D + d + 1] * b;
        }
        const ivec position = lane + static_cast<int32_t>(p * PAGE);
        const ivec seen = (position >= static_cast<int32_t>(first)) & (position < static_cast<int32_t>(length));
        for (int g = 0; g < G; g++) {
            vec s = seen ? (even[g] + odd[g]) * scale : fill(-INFINITY);
            top[g] = s > top[g] ? s : top[g];
            *reinterpret_cast<vec*>(scores + g * row + (p - from) * PAGE) = s;
        }
    }
    float inverse[G];
    for (int g = 0; g < G; g++) {
        const vec m = fill(highest(top[g]));
        vec sum = {};
        for (int64_t p = from; p < to; p++) {
            vec* s = reinterpret_cast<vec*>(scores + g * row + (p - from) * PAGE);
            *s = *s == fill(-INFINITY) ? vec{} : exponential(*s - m);
            sum += *s;
        }
        inverse[g] = 1.0f / total(sum);
    }
    for (int64_t d = 0; d < D; d += PAGE) {
        vec o[G] = {};
        for (int64_t p = from; p < to; p++) {
            const float* values = value_pool + pages[p] * stride + d;
            const int64_t valid = std::min<int64_t>(PAGE, length - p * PAGE);
            for (int64_t j = 0; j < valid; j++) {
                const vec v = load(values + j * D);
                for (int g = 0; g < G; g++) o[g] += scores[g * row + (p - from) * PAGE + j] * v;
            }
        }
        for (int g = 0; g < G; g++) *reinterpret_cast<vec*>(out + g * D + d) = o[g] * inverse[g];
    }
}

extern "C" void paged_attention(const float* q, const float* key_pool, const float* value_pool, const int32_t* table,
                                int64_t table_stride, const int32_t* row_slot, const int32_t* row_length, float* out,
                                int64_t N, int64_t H, int64_t K, int64_t D, int64_t window, float scale) {
    const int64_t group = H / K, stride = K * D * PAGE;
#pragma omp parallel
    {
        std::vector<float> scores;
#pragma omp for schedule(dynamic, 8)
        for (int64_t n = 0; n < N; n++) {
            const int64_t length = row_length[n];
            const int64_t first = window > 0 ? std::max<int64_t>(0, length - window) : 0;
            const int64_t row = ((length + PAGE - 1) / PAGE - first / PAGE) * PAGE;
            if (static_cast<int64_t>(scores.size()) < 4 * row) scores.resize(4 * row + 1024);
            const int32_t* pages = table + row_slot[n] * table_stride;
            for (int64_t h = 0; h < H;) {
                const int64_t kv = h / group, left = (kv + 1) * group - h;
                const int64_t take = left >= 4 ? 4 : left >= 2 ? 2 : 1;
                auto heads = take == 4 ? attend<4> : take == 2 ? attend<2> : attend<1>;
                heads(q + (n * H + h) * D, key_pool + kv * D * PAGE, value_pool + kv * PAGE * D, pages, stride, first,
                      length, D, scale, scores.data(), row, out + (n * H + h) * D);
                h += take;
            }
        }
    }
}
