// Bilinear resampling of uint8 images by affine maps, with the reflect padding of torch's `grid_sample`: one pass over
// the output, while torch makes float images and a grid first.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using Index = std::int64_t;

// Sets the first of the two pixels along an axis that a coordinate, in [-1, 1] or beyond, lies between, and the weight
// of the second.
inline void interpolate(float coordinate, int side, int &first, float &weight) {
    const float from_edge = std::fabs(((coordinate + 1) * side - 1) / 2 + 0.5f);
    const float periods = std::floor(from_edge / side), remainder = from_edge - periods * side;
    const bool is_reflected = periods - 2 * std::floor(periods / 2) != 0;
    const float inside = (is_reflected ? side - remainder : remainder) - 0.5f;
    const float x = std::min(std::max(0.0f, inside), static_cast<float>(side - 1));  // NaN becomes 0
    first = std::min(static_cast<int>(x), side - 2);
    weight = x - first;
}

// The source pixel and the weights of each pixel in a row of the output.
struct OutputRow {
    explicit OutputRow(int side) : side(side), source(side), x_weights(side), y_weights(side) {}

    void compute_sources(const float *map, Index row) {
        const float y = (2.0f * row + 1.0f) / side - 1.0f;
        const float first_x = map[1] * y + map[2], first_y = map[4] * y + map[5];
        int *__restrict offset = source.data();
        float *__restrict x_weight = x_weights.data(), *__restrict y_weight = y_weights.data();
        for (int i = 0; i < side; ++i) {
            const float x = (2.0f * i + 1.0f) / side - 1.0f;
            int column, source_row;
            interpolate(map[0] * x + first_x, side, column, x_weight[i]);
            interpolate(map[3] * x + first_y, side, source_row, y_weight[i]);
            offset[i] = source_row * side + column;
        }
    }

    void blend(const std::uint8_t *__restrict image, float *__restrict out) const {
        const int *__restrict offset = source.data();
        const float *__restrict x = x_weights.data(), *__restrict y = y_weights.data();
        for (int i = 0; i < side; ++i) {
            const std::uint8_t *top = image + offset[i], *bottom = top + side;
            const float a = top[0], b = top[1], c = bottom[0], d = bottom[1];
            const float upper = a + x[i] * (b - a), lower = c + x[i] * (d - c);
            out[i] = (upper + y[i] * (lower - upper)) * (1.0f / 255.0f);
        }
    }

    int side;
    std::vector<int> source;  // offset of the upper left one of four pixels
    std::vector<float> x_weights, y_weights;
};

}  // namespace

// images (count, channels, side, side), maps (count, 2, 3) -> out, shaped like images, in [0, 1]; side > 1.
extern "C" void resample(const std::uint8_t *images, const float *maps, float *out, Index count, Index channels,
                         Index side, int threads) {
#pragma omp parallel num_threads(threads)
    {
        OutputRow output_row(static_cast<int>(side));
#pragma omp for schedule(static)
        for (Index i = 0; i < count * side; ++i) {
            const Index image = i / side, row = i % side;
            output_row.compute_sources(maps + 6 * image, row);
            for (Index plane = image * channels; plane < (image + 1) * channels; ++plane)
                output_row.blend(images + plane * side * side, out + (plane * side + row) * side);
        }
    }
}
