// Batch norm of a float32 map (pixels, fields, size) of few passes. Sums are float32 within some pixels and float64
// beyond; their order, and so their bits, depend on the number of pixels alone.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <new>
#include <omp.h>
#include <vector>

namespace {

using Index = std::int64_t;

constexpr Index CHUNK = 32;        // pixels whose sums are float32
constexpr Index MOST_BLOCKS = 64;  // of pixels, which threads share

struct Map {
    Index pixels, fields, size, threads;

    Index channels() const { return fields * size; }
    Index blocks() const { return std::min(MOST_BLOCKS, (pixels + CHUNK - 1) / CHUNK); }

    // Call visit(block, index of the first value, number of pixels) for all chunks of all blocks.
    template <typename Visit>
    void for_chunks(Visit visit) const {
        const Index count = blocks();
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static)
        for (Index block = 0; block < count; ++block) {
            const Index end = pixels * (block + 1) / count;
            for (Index at = pixels * block / count; at < end; at += CHUNK)
                visit(block, at * channels(), std::min(CHUNK, end - at));
        }
    }

    // The values of fields, one for each channel.
    std::vector<float> repeat(const std::vector<float> &values) const {
        std::vector<float> repeated(channels());
        for (Index c = 0; c < channels(); ++c) repeated[c] = values[c / size];
        return repeated;
    }
};

// Sums of values and of squared deviations from their mean, by channel.
struct Moments {
    explicit Moments(Index channels) : mean(channels), squares(channels) {}

    void merge(const Moments &more) {
        const double share = double(more.count) / double(count + more.count), weight = share * double(count);
        for (std::size_t c = 0; c < mean.size(); ++c) {
            const double difference = more.mean[c] - mean[c];
            mean[c] += difference * share;
            squares[c] += more.squares[c] + difference * difference * weight;
        }
        count += more.count;
    }

    Index count = 0;
    std::vector<double> mean, squares;
};

// The deviations of a chunk are from its own mean, so that nothing cancels.
Moments measure_chunk(const float *x, Index count, Index channels) {
    std::vector<float> sums(channels), squares(channels);
    float *__restrict sum = sums.data(), *__restrict square = squares.data();
    for (Index p = 0; p < count; ++p)
        for (Index c = 0; c < channels; ++c) sum[c] += x[p * channels + c];
    for (Index c = 0; c < channels; ++c) sum[c] /= float(count);
    for (Index p = 0; p < count; ++p)
        for (Index c = 0; c < channels; ++c) {
            const float deviation = x[p * channels + c] - sum[c];
            square[c] += deviation * deviation;
        }
    Moments moments(channels);
    moments.count = count;
    std::copy(sums.begin(), sums.end(), moments.mean.begin());
    std::copy(squares.begin(), squares.end(), moments.squares.begin());
    return moments;
}

void measure(const Map &map, const float *x, float *mean, float *variance) {
    std::vector<Moments> blocks(map.blocks(), Moments(map.channels()));
    map.for_chunks([&](Index block, Index at, Index count) {
        blocks[block].merge(measure_chunk(x + at, count, map.channels()));
    });
    for (Index block = 1; block < map.blocks(); ++block) blocks[0].merge(blocks[block]);
    for (Index field = 0; field < map.fields; ++field) {
        const double *means = &blocks[0].mean[field * map.size], *squares = &blocks[0].squares[field * map.size];
        double center = 0.0, square = 0.0;
        for (Index i = 0; i < map.size; ++i) center += means[i] / double(map.size);
        for (Index i = 0; i < map.size; ++i)
            square += squares[i] / double(map.pixels) + (means[i] - center) * (means[i] - center);
        mean[field] = float(center), variance[field] = float(square / double(map.size));
    }
}

// out = x * scale + shift, and with a gradient + gradient * gradient_scale, by channel.
void combine(const Map &map, const float *x, const std::vector<float> &scales, const std::vector<float> &shifts,
             const float *gradient, const std::vector<float> &gradient_scales, float *out) {
    const float *scale = scales.data(), *shift = shifts.data(), *gradient_scale = gradient_scales.data();
    map.for_chunks([=](Index, Index at, Index count) {
        for (Index p = 0; p < count; ++p) {
            const Index from = at + p * map.channels();
            float *__restrict to = out + from;
            if (gradient)
                for (Index c = 0; c < map.channels(); ++c)
                    to[c] = gradient[from + c] * gradient_scale[c] + (x[from + c] * scale[c] + shift[c]);
            else
                for (Index c = 0; c < map.channels(); ++c) to[c] = x[from + c] * scale[c] + shift[c];
        }
    });
}

void apply(const Map &map, const float *x, const float *mean, const float *variance, const float *weight,
           const float *bias, float eps, float *y) {
    std::vector<float> scale(map.fields), shift(map.fields);
    for (Index field = 0; field < map.fields; ++field) {
        scale[field] = weight[field] / std::sqrt(variance[field] + eps);
        shift[field] = bias[field] - mean[field] * scale[field];
    }
    combine(map, x, map.repeat(scale), map.repeat(shift), nullptr, {}, y);
}

// Sums of the gradient and of its products with deviations from the mean, by field.
std::vector<double> sum_gradients(const Map &map, const float *gradient, const float *x, const float *mean) {
    const Index channels = map.channels();
    const std::vector<float> means = map.repeat({mean, mean + map.fields});
    std::vector<double> totals(map.blocks() * 2 * channels), sums(2 * map.fields);
    map.for_chunks([&](Index block, Index at, Index count) {
        std::vector<float> chunk(2 * channels);
        float *__restrict first = chunk.data(), *__restrict second = chunk.data() + channels;
        const float *center = means.data();
        for (Index p = 0; p < count; ++p)
            for (Index c = 0; c < channels; ++c) {
                const float value = gradient[at + p * channels + c];
                first[c] += value;
                second[c] += value * (x[at + p * channels + c] - center[c]);
            }
        for (Index i = 0; i < 2 * channels; ++i) totals[block * 2 * channels + i] += chunk[i];
    });
    for (Index block = 0; block < map.blocks(); ++block)
        for (Index i = 0; i < 2 * channels; ++i) sums[i / map.size] += totals[block * 2 * channels + i];
    return sums;
}

void differentiate(const Map &map, const float *gradient, const float *x, const float *mean, const float *variance,
                   const float *weight, float eps, float *by_x, float *by_weight, float *by_bias) {
    const std::vector<double> sums = sum_gradients(map, gradient, x, mean);
    const double count = double(map.pixels * map.size);
    std::vector<float> scale(map.fields), slope(map.fields), shift(map.fields);
    for (Index field = 0; field < map.fields; ++field) {
        const double inverse_std = 1.0 / std::sqrt(double(variance[field]) + eps);
        const double products = sums[map.fields + field] * inverse_std, factor = weight[field] * inverse_std;
        by_bias[field] = float(sums[field]), by_weight[field] = float(products);
        scale[field] = float(factor), slope[field] = float(-factor * inverse_std * products / count);
        shift[field] = float(-factor * sums[field] / count) - mean[field] * slope[field];
    }
    combine(map, x, map.repeat(slope), map.repeat(shift), gradient, map.repeat(scale), by_x);
}

}  // namespace

// All return false if memory is exhausted.
#define EXPORT(name, parameters, call)     \
    extern "C" bool name parameters {      \
        try {                              \
            call;                          \
            return true;                   \
        } catch (const std::bad_alloc &) { \
            return false;                  \
        }                                  \
    }

EXPORT(measure_float32, (const Map *map, const float *x, float *mean, float *variance),
       measure(*map, x, mean, variance))
EXPORT(apply_float32,
       (const Map *map, const float *x, const float *mean, const float *variance, const float *weight,
        const float *bias, float eps, float *y),
       apply(*map, x, mean, variance, weight, bias, eps, y))
EXPORT(differentiate_float32,
       (const Map *map, const float *gradient, const float *x, const float *mean, const float *variance,
        const float *weight, float eps, float *by_x, float *by_weight, float *by_bias),
       differentiate(*map, gradient, x, mean, variance, weight, eps, by_x, by_weight, by_bias))
