// Bilinear resampling of bytes by affine maps, as torch's `grid_sample` reflects at the edges of an image: one pass over
// the output, where torch makes floats and a grid first.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using Index = std::int64_t;

// Which two neighbours along an axis a coordinate in [-1, 1], or beyond, lies between, and the weight of the second.
inline void place(float at, int side, int &first, float &weight) {
    const float from_edge = std::fabs(((at + 1) * side - 1) / 2 + 0.5f);
    const float turns = std::floor(from_edge / side), left = from_edge - turns * side;
    const bool mirrored = turns - 2 * std::floor(turns / 2) != 0;
    const float inside = (mirrored ? side - left : left) - 0.5f;
    const float x = std::min(std::max(0.0f, inside), static_cast<float>(side - 1));  // not a number: 0
    first = std::min(static_cast<int>(x), side - 2);
    weight = x - first;
}

// A line of pixels: where each comes from.
struct Line {
    explicit Line(int side) : side(side), from(side), right(side), down(side) {}

    void find(const float *map, Index row) {
        const float y = (2.0f * row + 1.0f) / side - 1.0f;
        const float first_x = map[1] * y + map[2], first_y = map[4] * y + map[5];
        int *__restrict at = from.data();
        float *__restrict x_weight = right.data(), *__restrict y_weight = down.data();
        for (int i = 0; i < side; ++i) {
            const float x = (2.0f * i + 1.0f) / side - 1.0f;
            int column, above;
            place(map[0] * x + first_x, side, column, x_weight[i]);
            place(map[3] * x + first_y, side, above, y_weight[i]);
            at[i] = above * side + column;
        }
    }

    void blend(const std::uint8_t *__restrict image, float *__restrict out) const {
        const int *__restrict at = from.data();
        const float *__restrict x = right.data(), *__restrict y = down.data();
        for (int i = 0; i < side; ++i) {
            const std::uint8_t *top = image + at[i], *bottom = top + side;
            const float a = top[0], b = top[1], c = bottom[0], d = bottom[1];
            const float over = a + x[i] * (b - a), under = c + x[i] * (d - c);
            out[i] = (over + y[i] * (under - over)) * (1.0f / 255.0f);
        }
    }

    int side;
    std::vector<int> from;
    std::vector<float> right, down;
};

}  // namespace

// images (count, channels, side, side), maps (count, 2, 3) -> out, shaped like images, in [0, 1]; side > 1.
extern "C" void resample(const std::uint8_t *images, const float *maps, float *out, Index count, Index channels,
                         Index side, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Line line(static_cast<int>(side));
#pragma omp for schedule(static)
        for (Index i = 0; i < count * side; ++i) {
            const Index image = i / side, row = i % side;
            line.find(maps + 6 * image, row);
            for (Index plane = image * channels; plane < (image + 1) * channels; ++plane)
                line.blend(images + plane * side * side, out + (plane * side + row) * side);
        }
    }
}
