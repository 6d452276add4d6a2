// Attention over paged keys and values, float32, any number of query rows of any mixture of sequences.
//
// One row is one token: `row_slot` says whose page table it reads, `row_length` how many keys it sees (its position
// plus one). A prefill is many rows of one slot, a decoding step one row of each; the kernel does not distinguish them.
// Keys lie as [page][kv head][D][16] so that one 512-bit multiply-add serves 16 keys; values as [page][kv head][16][D].
#include <cstdint>
#include <cmath>
#include <vector>
#include <algorithm>

static constexpr int PAGE = 16;

// exp(x) for x <= 0 to about 1e-7 relative: 2^n times a degree-6 polynomial on [-ln2/2, ln2/2]. Written out because
// the compiler can then vectorise it without relaxing floating point anywhere.
static inline float fast_exp(float x) {
    x = std::max(x, -87.0f);
    float n = std::nearbyint(x * 1.44269504088896341f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.3981999e-3f;
    p = p * r + 8.3334519e-3f;
    p = p * r + 4.1665796e-2f;
    p = p * r + 1.6666666e-1f;
    p = p * r + 5.0e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t i; float f; } scale;
    scale.i = (static_cast<int32_t>(n) + 127) << 23;
    return p * scale.f;
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

extern "C" void paged_attention(const float* q, const float* key_pool, const float* value_pool, const int32_t* table,
                                int64_t table_stride, const int32_t* row_slot, const int32_t* row_length, float* out,
                                int64_t N, int64_t H, int64_t K, int64_t D, int64_t window, float scale) {
    const int64_t group = H / K;
#pragma omp parallel
    {
        std::vector<float> scores;
        std::vector<float> sum(D);
#pragma omp for schedule(dynamic, 8)
        for (int64_t n = 0; n < N; n++) {
            const int64_t length = row_length[n];
            const int64_t first = window > 0 ? std::max<int64_t>(0, length - window) : 0;
            const int64_t page0 = first / PAGE, pages = (length + PAGE - 1) / PAGE;
            const int32_t* row_table = table + row_slot[n] * table_stride;
            if (static_cast<int64_t>(scores.size()) < (pages - page0) * PAGE) scores.resize((pages - page0) * PAGE + 256);
            for (int64_t h = 0; h < H; h++) {
                const float* query = q + (n * H + h) * D;
                float top = -INFINITY;
                for (int64_t p = page0; p < pages; p++) {
                    const float* keys = key_pool + (row_table[p] * K + h / group) * D * PAGE;
                    float dot[PAGE] = {0};
                    for (int64_t d = 0; d < D; d++)
                        for (int j = 0; j < PAGE; j++) dot[j] += query[d] * keys[d * PAGE + j];
                    float* s = scores.data() + (p - page0) * PAGE;
                    for (int j = 0; j < PAGE; j++) {
                        int64_t position = p * PAGE + j;
                        s[j] = position >= first && position < length ? dot[j] * scale : -INFINITY;
                    }
                    for (int j = 0; j < PAGE; j++) top = std::max(top, s[j]);
                }
                const int64_t count = (pages - page0) * PAGE;
                float* s = scores.data();
                for (int64_t i = 0; i < count; i++) s[i] = s[i] == -INFINITY ? 0.0f : fast_exp(s[i] - top);
                double total = 0;
                for (int64_t i = 0; i < count; i++) total += s[i];
                std::fill(sum.begin(), sum.end(), 0.0f);
                float* o = sum.data();
                for (int64_t p = page0; p < pages; p++) {
                    const float* values = value_pool + (row_table[p] * K + h / group) * PAGE * D;
                    const float* w = s + (p - page0) * PAGE;
                    const int64_t valid = std::min<int64_t>(PAGE, length - p * PAGE);
                    for (int64_t j = 0; j < valid; j++)
                        for (int64_t d = 0; d < D; d++) o[d] += w[j] * values[j * D + d];
                }
                const float inverse = static_cast<float>(1.0 / total);
                for (int64_t d = 0; d < D; d++) out[(n * H + h) * D + d] = o[d] * inverse;
            }
        }
    }
}
