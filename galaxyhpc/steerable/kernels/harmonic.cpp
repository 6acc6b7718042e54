// Steerable convolution in the basis of irreps, one tile of pixels at a time: the maps z (defined in `harmonic.py`) are
// computed in the cache and multiplied there. All inner loops run along fields, in rows of whole vectors.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <omp.h>
#include <vector>

namespace {

using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr int BYTES = 64, MOST_ROWS[] = {0, 14, 12, 8};  // of a vector; rows of a product, by vectors per row
#elif defined(__AVX__)
constexpr int BYTES = 32, MOST_ROWS[] = {0, 8, 6, 4};
#elif defined(__aarch64__)
constexpr int BYTES = 16, MOST_ROWS[] = {0, 14, 12, 8};
#else
constexpr int BYTES = 16, MOST_ROWS[] = {0, 8, 6, 4};
#endif
constexpr int WIDEST = 3;    // vectors per row of a product
constexpr Index RUN = 32;    // adjacent pixels whose z are computed at once
constexpr int TOGETHER = 9;  // terms that are summed at once

template <typename T>
constexpr Index LANES = BYTES / sizeof(T);

template <typename T, int lanes>
struct Vectors {
    typedef T type __attribute__((vector_size(lanes * sizeof(T)), aligned(sizeof(T)), may_alias));
};

// The plan of a basis, for any number of fields: `_CPlan` of cpu.py. A field has `rows_in` adjacent values in the input
// and `rows_out` in the output.
template <typename T>
struct Plan {
    Index size, rows_in, rows_out;
    const T *turn_in, *turn_out;  // changes of basis from a field to its irreps, (rows, rows)
    Index steps, parts, maps;     // numbers of sums per pixel, of stored parts at most, of maps of z
    const Index *target;          // (steps) result of a sum: a map, or ~n for part n
    const Index *of_parts;        // (steps) whether a sum adds parts, or values of neighbours
    const Index *start;           // (steps + 1) first term of a sum
    const Index *source;          // (terms) a part, or row x size^2 + neighbour
    const T *factor;              // (terms)
    Index kinds;                  // number of irreps of the output
    const Index *kind;            // (kinds, 3) components, blocks, copies
    const Index *row;             // (kinds x copies x components) index among rows_out
    const Index *number;          // (kinds x blocks x copies) index of a weight
};

struct Shape {
    Index images, rows, columns;        // of the input
    Index pad;                          // zeros before the first row and column
    Index out_rows, out_columns, step;  // of the output, and pixels of the input between its pixels
    Index fields, out_fields;
    Index by_field, by_out_field;  // strides of the weights
    Index tile, threads;           // pixels of a tile, number of threads
};

// Uninitialised memory, aligned to cache lines.
template <typename T>
struct Space {
    explicit Space(Index count) : at(static_cast<T *>(std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64))) {
        if (!at) throw std::bad_alloc();
    }
    T *get() const { return at.get(); }
    struct Free {
        void operator()(T *values) const { std::free(values); }
    };
    std::unique_ptr<T, Free> at;
};

// c (rows, width vectors) = or += the sum over k of a[row, k] b[k]; the sum is completed before it is added, for
// exactness.
template <typename T, int width, int rows>
void product(const T *a, Index a_row, Index a_k, const T *b, Index b_k, Index count, T *c, Index c_row, bool add) {
    using Vector = typename Vectors<T, LANES<T>>::type;
    Vector sum[rows][width] = {};
    for (Index k = 0; k < count; ++k) {
        Vector right[width];
        for (int j = 0; j < width; ++j) right[j] = *reinterpret_cast<const Vector *>(b + k * b_k + j * LANES<T>);
        for (int i = 0; i < rows; ++i)
            for (int j = 0; j < width; ++j) sum[i][j] += a[i * a_row + k * a_k] * right[j];
    }
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < width; ++j) {
            Vector *to = reinterpret_cast<Vector *>(c + i * c_row + j * LANES<T>);
            *to = add ? *to + sum[i][j] : sum[i][j];
        }
}

template <typename T, int width, int rows = MOST_ROWS[width]>
void product_of(Index wanted, const T *a, Index a_row, Index a_k, const T *b, Index b_k, Index count, T *c,
                Index c_row, bool add) {
    if (wanted == rows) return product<T, width, rows>(a, a_row, a_k, b, b_k, count, c, c_row, add);
    if constexpr (rows > 1) product_of<T, width, rows - 1>(wanted, a, a_row, a_k, b, b_k, count, c, c_row, add);
}

// The same for any number of rows, in pieces of about equal size.
template <typename T>
void products(Index width, Index rows, const T *a, Index a_row, Index a_k, const T *b, Index b_k, Index count, T *c,
              Index c_row, bool add) {
    const Index most = MOST_ROWS[width], pieces = (rows + most - 1) / most;
    for (Index piece = 0; piece < pieces; ++piece) {
        const Index begin = rows * piece / pieces, some = rows * (piece + 1) / pieces - begin;
        const T *from = a + begin * a_row;
        T *to = c + begin * c_row;
        if (width == 3) product_of<T, 3>(some, from, a_row, a_k, b, b_k, count, to, c_row, add);
        if (width == 2) product_of<T, 2>(some, from, a_row, a_k, b, b_k, count, to, c_row, add);
        if (width == 1) product_of<T, 1>(some, from, a_row, a_k, b, b_k, count, to, c_row, add);
    }
}

// Sum of factors times sources, one vector per pixel.
template <typename T, int count, int lanes>
void sum_vector(T *out, Index out_pixel, const T *const *sources, Index pixel, const T *factors, Index pixels,
                bool add) {
    using Vector = typename Vectors<T, lanes>::type;
    T factor[count];
    const T *source[count];
    for (int i = 0; i < count; ++i) factor[i] = factors[i], source[i] = sources[i];
    for (Index p = 0; p < pixels; ++p) {
        Vector *to = reinterpret_cast<Vector *>(out + p * out_pixel);
        Vector sum = add ? *to : Vector{};
        for (int i = 0; i < count; ++i) sum += factor[i] * *reinterpret_cast<const Vector *>(source[i] + p * pixel);
        *to = sum;
    }
}

// out = the sum of factors times sources, for some pixels and the fields of one vector.
template <typename T, int lanes, int count = TOGETHER>
void sum_group(Index wanted, T *out, Index out_pixel, const T *const *sources, Index pixel, const T *factors,
               Index pixels, bool add) {
    if (wanted == count) return sum_vector<T, count, lanes>(out, out_pixel, sources, pixel, factors, pixels, add);
    if constexpr (count > 1)
        sum_group<T, lanes, count - 1>(wanted, out, out_pixel, sources, pixel, factors, pixels, add);
}

// The same for all fields; where whole vectors do not end with the last field, two of them overlap.
template <typename T, int lanes = LANES<T>>
void sum(T *out, Index out_pixel, const T *const *sources, Index pixel, const T *factors, Index terms, Index pixels,
         Index fields) {
    if constexpr (lanes > 1)
        if (fields < lanes)
            return sum<T, lanes / 2>(out, out_pixel, sources, pixel, factors, terms, pixels, fields);
    for (Index end = lanes; end < fields + lanes; end += lanes) {
        const Index begin = std::min(end, fields) - lanes;
        for (Index i = 0; i < terms; i += TOGETHER) {
            const Index some = std::min<Index>(TOGETHER, terms - i);
            const T *from[TOGETHER];
            for (Index k = 0; k < some; ++k) from[k] = sources[i + k] + begin;
            sum_group<T, lanes>(some, out + begin, out_pixel, from, pixel, factors + i, pixels, i > 0);
        }
    }
}

// Add factors times a vector per pixel to targets: the transpose of `sum_vector`.
template <typename T, int count = TOGETHER>
void spread(Index wanted, const T *from, Index from_pixel, T *const *targets, Index pixel, const T *factors,
            Index pixels) {
    using Vector = typename Vectors<T, LANES<T>>::type;
    if constexpr (count > 1)
        if (wanted < count) return spread<T, count - 1>(wanted, from, from_pixel, targets, pixel, factors, pixels);
    T factor[count], *target[count];
    for (int i = 0; i < count; ++i) factor[i] = factors[i], target[i] = targets[i];
    for (Index p = 0; p < pixels; ++p) {
        const Vector value = *reinterpret_cast<const Vector *>(from + p * from_pixel);
        for (int i = 0; i < count; ++i) *reinterpret_cast<Vector *>(target[i] + p * pixel) += factor[i] * value;
    }
}

// Multiply the fields of a vector by a matrix, and write its rows: a transpose of constant size, by shuffles.
template <typename T, int rows, int lanes>
void into_rows_of(const T *__restrict field, T *__restrict out, Index row, const T *__restrict turn) {
    using Vector = typename Vectors<T, lanes>::type;
    T line[rows * lanes];
    for (int f = 0; f < lanes; ++f)
        for (int i = 0; i < rows; ++i) line[i * lanes + f] = field[f * rows + i];
    for (int r = 0; r < rows; ++r) {
        Vector value = {};
        for (int i = 0; i < rows; ++i)
            value += turn[r * rows + i] * *reinterpret_cast<const Vector *>(line + i * lanes);
        *reinterpret_cast<Vector *>(out + r * row) = value;
    }
}

// The inverse: multiply rows by the transpose of the matrix, and write fields.
template <typename T, int rows, int lanes>
void out_of_rows_of(const T *__restrict given, Index row, T *__restrict field, const T *__restrict turn) {
    using Vector = typename Vectors<T, lanes>::type;
    T line[rows * lanes];
    for (int i = 0; i < rows; ++i) {
        Vector value = {};
        for (int r = 0; r < rows; ++r) value += turn[r * rows + i] * *reinterpret_cast<const Vector *>(given + r * row);
        *reinterpret_cast<Vector *>(line + i * lanes) = value;
    }
    for (int f = 0; f < lanes; ++f)
        for (int i = 0; i < rows; ++i) field[f * rows + i] = line[i * lanes + f];
}

// The same for all fields, as in `sum`.
template <typename T, int rows, int lanes = LANES<T>>
void into_rows(const T *field, T *out, Index row, Index fields, const T *turn) {
    if constexpr (lanes > 1)
        if (fields < lanes) return into_rows<T, rows, lanes / 2>(field, out, row, fields, turn);
    for (Index end = lanes; end < fields + lanes; end += lanes) {
        const Index begin = std::min(end, fields) - lanes;
        into_rows_of<T, rows, lanes>(field + begin * rows, out + begin, row, turn);
    }
}

template <typename T, int rows, int lanes = LANES<T>>
void out_of_rows(const T *given, Index row, T *field, Index fields, const T *turn) {
    if constexpr (lanes > 1)
        if (fields < lanes) return out_of_rows<T, rows, lanes / 2>(given, row, field, fields, turn);
    for (Index end = lanes; end < fields + lanes; end += lanes) {
        const Index begin = std::min(end, fields) - lanes;
        out_of_rows_of<T, rows, lanes>(given + begin, row, field + begin * rows, turn);
    }
}

template <typename T>
class Convolution {
  public:
    Convolution(const Plan<T> &plan, const Shape &shape) : plan(plan), shape(shape) {
        row = padded(shape.fields), out_row = padded(shape.out_fields);
        pixel = row * plan.rows_in + LANES<T>, out_pixel = out_row * plan.rows_out + LANES<T>;
        z_pixel = plan.maps * shape.fields + LANES<T>;  // strides that are powers of two would share cache sets
        grid_rows = (shape.out_rows - 1) * shape.step + plan.size;
        grid_columns = (shape.out_columns - 1) * shape.step + plan.size;
        pixels = shape.images * shape.out_rows * shape.out_columns;
        const Index taps = plan.size * plan.size;
        for (Index i = 0; i < plan.start[plan.steps]; ++i) {
            const Index tap = plan.source[i] % taps;
            near.push_back((tap / plan.size * grid_columns + tap % plan.size) * pixel + plan.source[i] / taps * row);
        }
        for (Index step = 0; step < plan.steps; ++step)
            most_terms = std::max(most_terms, plan.start[step + 1] - plan.start[step]);
        for (Index begin = 0; begin < out_row; begin += WIDEST * LANES<T>) add_panels(begin);
    }

    // given (images, rows, columns, fields, rows_in) -> out (images, out_rows, out_columns, out_fields, rows_out), or
    // the gradient of the weights for `other`, of the shape of out; or both.
    void operator()(const T *given, const T *weights, const T *other, T *out, T *by_weights) const {
        Space<T> grid(shape.images * grid_rows * grid_columns * pixel), right(out ? packed : 0);
        std::vector<Scratch> scratch;
        std::vector<Space<T>> sums;
        for (Index t = 0; t < shape.threads; ++t) {
            scratch.emplace_back(*this);
            if (by_weights) sums.emplace_back(packed);
        }
        const Index tiles = (pixels + shape.tile - 1) / shape.tile;
#pragma omp parallel num_threads(static_cast<int>(shape.threads))
        {
            Scratch &own = scratch[omp_get_thread_num()];
            std::memset(own.hats.get(), 0, shape.tile * out_pixel * sizeof(T));  // for rows without an irrep
            // what memory holds after the last field may be denormal, which makes arithmetic a hundred times as slow
            if (by_weights) std::memset(own.others.get(), 0, shape.tile * out_pixel * sizeof(T));
#pragma omp for schedule(static) nowait
            for (Index line = 0; line < shape.images * grid_rows; ++line) fill(given, grid.get(), line, own);
#pragma omp for schedule(static)
            for (Index field = 0; field < shape.fields; ++field)
                if (out) pack(weights, right.get(), field);
#pragma omp for schedule(static)
            for (Index t = 0; t < shape.threads; ++t) {
                if (by_weights) std::memset(sums[t].get(), 0, packed * sizeof(T));
                for (Index i = tiles * t / shape.threads; i < tiles * (t + 1) / shape.threads; ++i) {
                    const Index begin = i * shape.tile, count = std::min(shape.tile, pixels - begin);
                    make(grid.get(), begin, count, own);
                    if (out) multiply(right.get(), out, begin, count, own);
                    if (by_weights) collect(other, sums[t].get(), begin, count, own);
                }
            }
#pragma omp for schedule(static)
            for (Index field = 0; field < shape.fields; ++field)
                if (by_weights) unpack(sums, by_weights, field);
        }
    }

    // From the gradient of the output that of the input, whose rows beyond the last of the grid have none.
    void differentiate(const T *other, const T *weights, T *by_given) const {
        const Index block_size = shape.out_fields * row, maps_pixel = plan.maps * row + LANES<T>;
        const Index grid_size = grid_rows * grid_columns * pixel, per_image = shape.out_rows * shape.out_columns;
        Index num_blocks = 0;
        for (Index kind = 0; kind < plan.kinds; ++kind) num_blocks += plan.kind[3 * kind + 1] * plan.kind[3 * kind + 2];
        Space<T> right(num_blocks * block_size);
        std::vector<Scratch> scratch;
        std::vector<Space<T>> grids, maps, parts;
        for (Index t = 0; t < shape.threads; ++t) {
            scratch.emplace_back(*this), grids.emplace_back(grid_size), maps.emplace_back(shape.tile * maps_pixel);
            parts.emplace_back(RUN * plan.parts * row);
        }
#pragma omp parallel num_threads(static_cast<int>(shape.threads))
        {
            const int thread = omp_get_thread_num();
            Scratch &own = scratch[thread];
            T *grid = grids[thread].get(), *own_maps = maps[thread].get(), *own_parts = parts[thread].get();
            std::memset(own_parts, 0, RUN * plan.parts * row * sizeof(T));
#pragma omp for schedule(static)
            for (Index field = 0; field < shape.out_fields; ++field) pack_transposed(weights, right.get(), field);
#pragma omp for schedule(static)
            for (Index image = 0; image < shape.images; ++image) {
                std::memset(grid, 0, grid_size * sizeof(T));
                for (Index begin = 0; begin < per_image; begin += shape.tile) {
                    const Index count = std::min(shape.tile, per_image - begin);
                    turn_others(other, image * per_image + begin, count, own);
                    multiply_transposed(right.get(), own_maps, maps_pixel, count, own);
                    for (Index done = 0; done < count;) {
                        const Index at = begin + done, column = at % shape.out_columns, line = at / shape.out_columns;
                        const Index some = std::min({RUN, count - done, shape.out_columns - column});
                        spread_run(own_maps + done * maps_pixel, maps_pixel,
                                   grid + (line * grid_columns + column) * shape.step * pixel, own_parts, some, own);
                        done += some;
                    }
                }
                write_gradient(grid, by_given, image, own);
            }
        }
    }

  private:
    // The product for some output fields of one copy of an irrep, (pixels, blocks x fields) by (blocks x fields, width
    // vectors), with the same weights for all components.
    struct Panel {
        Index components, blocks, width, begin;  // begin: first field
        Index z, packed;                         // offsets of its maps and of its weights
        const Index *rows;                       // (components)
        const Index *numbers;                    // (blocks), `copies` apart
        Index copies;
    };

    // Add the panels of all irreps for some output fields, so that their weights are adjacent in memory.
    void add_panels(Index begin) {
        const Index width = std::min<Index>(WIDEST, (out_row - begin) / LANES<T>);
        Index rows = 0, numbers = 0, map = 0;
        for (Index kind = 0; kind < plan.kinds; ++kind) {
            const Index components = plan.kind[3 * kind], blocks = plan.kind[3 * kind + 1];
            const Index copies = plan.kind[3 * kind + 2];
            for (Index copy = 0; copy < copies; ++copy, rows += components) {
                panels.push_back({components, blocks, width, begin, map * shape.fields, packed, plan.row + rows,
                                  plan.number + numbers + copy, copies});
                packed += blocks * shape.fields * width * LANES<T>;
            }
            numbers += blocks * copies, map += components * blocks;
        }
    }

    struct Scratch {  // buffers of a thread
        explicit Scratch(const Convolution &of)
            : z(of.shape.tile * of.z_pixel), parts(RUN * of.plan.parts * of.shape.fields),
              hats(of.shape.tile * of.out_pixel), others(of.shape.tile * of.out_pixel),
              line(std::max(of.pixel, of.out_pixel)), sources(of.most_terms) {
            std::memset(line.get(), 0, std::max(of.pixel, of.out_pixel) * sizeof(T));  // see `others` above
        }
        Space<T> z, parts, hats, others, line;
        std::vector<const T *> sources;  // of a sum
    };

    static Index padded(Index fields) { return (fields + LANES<T> - 1) / LANES<T> * LANES<T>; }

    void turn(const T *field, T *out, Index rows, Index row, Index fields, const T *turn, T *line) const {
        if (rows == 1) return into_rows<T, 1>(field, out, row, fields, turn);
        if (rows == 2) return into_rows<T, 2>(field, out, row, fields, turn);
        if (rows == 4) return into_rows<T, 4>(field, out, row, fields, turn);
        if (rows == 8) return into_rows<T, 8>(field, out, row, fields, turn);
        if (rows == 16) return into_rows<T, 16>(field, out, row, fields, turn);
        for (Index f = 0; f < fields; ++f)
            for (Index i = 0; i < rows; ++i) line[i * row + f] = field[f * rows + i];
        turned(turn, rows, 1, rows, line, out, row);
    }

    void turn_back(const T *hats, T *field, Index rows, Index row, Index fields, const T *turn, T *line) const {
        if (rows == 1) return out_of_rows<T, 1>(hats, row, field, fields, turn);
        if (rows == 2) return out_of_rows<T, 2>(hats, row, field, fields, turn);
        if (rows == 4) return out_of_rows<T, 4>(hats, row, field, fields, turn);
        if (rows == 8) return out_of_rows<T, 8>(hats, row, field, fields, turn);
        if (rows == 16) return out_of_rows<T, 16>(hats, row, field, fields, turn);
        turned(turn, 1, rows, rows, hats, line, row);
        for (Index f = 0; f < fields; ++f)
            for (Index i = 0; i < rows; ++i) field[f * rows + i] = line[i * row + f];
    }

    static void turned(const T *turn, Index turn_row, Index turn_k, Index rows, const T *from, T *to, Index row) {
        for (Index at = 0; at < row; at += WIDEST * LANES<T>)
            products(std::min<Index>(WIDEST, (row - at) / LANES<T>), rows, turn, turn_row, turn_k, from + at, row, rows,
                     to + at, row, false);
    }

    // Write a line of the padded grid.
    void fill(const T *given, T *grid, Index line, Scratch &own) const {
        const Index image = line / grid_rows, i = line % grid_rows - shape.pad;
        T *out = grid + line * grid_columns * pixel;
        if (i < 0 || i >= shape.rows) {
            std::memset(out, 0, grid_columns * pixel * sizeof(T));
            return;
        }
        const T *from = given + (image * shape.rows + i) * shape.columns * shape.fields * plan.rows_in;
        for (Index column = 0; column < grid_columns; ++column, out += pixel) {
            const Index j = column - shape.pad;
            if (j < 0 || j >= shape.columns)
                std::memset(out, 0, pixel * sizeof(T));
            else
                turn(from + j * shape.fields * plan.rows_in, out, plan.rows_in, row, shape.fields, plan.turn_in,
                     own.line.get());
        }
    }

    // Compute the maps z of a tile, (count, z_pixel).
    void make(const T *grid, Index begin, Index count, Scratch &own) const {
        for (Index done = 0; done < count;) {
            const Index at = begin + done, column = at % shape.out_columns, line = at / shape.out_columns;
            const Index some = std::min({RUN, count - done, shape.out_columns - column});
            const Index image = line / shape.out_rows, i = line % shape.out_rows;
            make_run(grid + ((image * grid_rows + i * shape.step) * grid_columns + column * shape.step) * pixel,
                     own.z.get() + done * z_pixel, some, own);
            done += some;
        }
    }

    void make_run(const T *first, T *z, Index count, Scratch &own) const {
        const Index fields = shape.fields, part_pixel = plan.parts * fields;
        for (Index step = 0; step < plan.steps; ++step) {
            const Index target = plan.target[step];
            T *to = target >= 0 ? z + target * fields : own.parts.get() + ~target * fields;
            const Index to_pixel = target >= 0 ? z_pixel : part_pixel;
            const bool of_parts = plan.of_parts[step];
            const Index begin = plan.start[step], terms = plan.start[step + 1] - begin;
            for (Index k = 0; k < terms; ++k)
                own.sources[k] = of_parts ? own.parts.get() + plan.source[begin + k] * fields : first + near[begin + k];
            sum(to, to_pixel, own.sources.data(), of_parts ? part_pixel : shape.step * pixel, plan.factor + begin,
                terms, count, fields);
        }
    }

    void multiply(const T *right, T *out, Index begin, Index count, Scratch &own) const {
        for (const Panel &panel : panels)
            for (Index c = 0; c < panel.components; ++c)
                products(panel.width, count, own.z.get() + panel.z + c * panel.blocks * shape.fields, z_pixel, 1,
                         right + panel.packed, panel.width * LANES<T>, panel.blocks * shape.fields,
                         own.hats.get() + panel.rows[c] * out_row + panel.begin, out_pixel, false);
        const Index values = shape.out_fields * plan.rows_out;
        for (Index p = 0; p < count; ++p)
            turn_back(own.hats.get() + p * out_pixel, out + (begin + p) * values, plan.rows_out, out_row,
                      shape.out_fields, plan.turn_out, own.line.get());
    }

    void turn_others(const T *other, Index begin, Index count, Scratch &own) const {
        const Index values = shape.out_fields * plan.rows_out;
        for (Index p = 0; p < count; ++p)
            turn(other + (begin + p) * values, own.others.get() + p * out_pixel, plan.rows_out, out_row,
                 shape.out_fields, plan.turn_out, own.line.get());
    }

    // Add a tile's contribution to the gradient of the weights.
    void collect(const T *other, T *sums, Index begin, Index count, Scratch &own) const {
        turn_others(other, begin, count, own);
        for (const Panel &panel : panels)
            for (Index c = 0; c < panel.components; ++c)
                products(panel.width, panel.blocks * shape.fields,
                         own.z.get() + panel.z + c * panel.blocks * shape.fields, 1, z_pixel,
                         own.others.get() + panel.rows[c] * out_row + panel.begin, out_pixel, count,
                         sums + panel.packed, panel.width * LANES<T>, true);
    }

    // Pack the weights of one input field into panels.
    void pack(const T *weights, T *right, Index field) const {
        for (const Panel &panel : panels)
            for (Index block = 0; block < panel.blocks; ++block) {
                const Index width = panel.width * LANES<T>, some = std::min(width, shape.out_fields - panel.begin);
                T *to = right + panel.packed + (block * shape.fields + field) * width;
                const T *from = weights + field * shape.by_field + panel.begin * shape.by_out_field +
                                panel.numbers[block * panel.copies];
                for (Index j = 0; j < some; ++j) to[j] = from[j * shape.by_out_field];
                std::fill(to + some, to + width, T(0));
            }
    }

    void unpack(const std::vector<Space<T>> &sums, T *by_weights, Index field) const {
        for (const Panel &panel : panels)
            for (Index block = 0; block < panel.blocks; ++block) {
                const Index width = panel.width * LANES<T>, some = std::min(width, shape.out_fields - panel.begin);
                const Index at = panel.packed + (block * shape.fields + field) * width;
                T *to = by_weights + field * shape.by_field + panel.begin * shape.by_out_field +
                        panel.numbers[block * panel.copies];
                for (Index j = 0; j < some; ++j) {
                    T total = 0;
                    for (const Space<T> &each : sums) total += each.get()[at + j];
                    to[j * shape.by_out_field] = total;
                }
            }
    }

    // Pack the weights of one output field, (copies, blocks) of every irrep, each (output fields, row).
    void pack_transposed(const T *weights, T *right, Index field) const {
        Index numbers = 0;
        for (Index kind = 0; kind < plan.kinds; ++kind) {
            const Index blocks = plan.kind[3 * kind + 1], copies = plan.kind[3 * kind + 2];
            for (Index copy = 0; copy < copies; ++copy)
                for (Index block = 0; block < blocks; ++block) {
                    T *to = right + ((numbers + copy * blocks + block) * shape.out_fields + field) * row;
                    const T *from = weights + field * shape.by_out_field + plan.number[numbers + block * copies + copy];
                    for (Index j = 0; j < shape.fields; ++j) to[j] = from[j * shape.by_field];
                    std::fill(to + shape.fields, to + row, T(0));
                }
            numbers += blocks * copies;
        }
    }

    // Compute the gradients of the maps z of a tile, (count, maps_pixel), in rows of whole vectors.
    void multiply_transposed(const T *right, T *maps, Index maps_pixel, Index count, const Scratch &own) const {
        Index rows = 0, map = 0;
        for (Index kind = 0; kind < plan.kinds; ++kind) {
            const Index components = plan.kind[3 * kind], blocks = plan.kind[3 * kind + 1];
            const Index copies = plan.kind[3 * kind + 2];
            for (Index copy = 0; copy < copies; ++copy)
                for (Index block = 0; block < blocks; ++block, right += shape.out_fields * row)
                    for (Index c = 0; c < components; ++c)
                        for (Index at = 0; at < row; at += WIDEST * LANES<T>)
                            products(std::min<Index>(WIDEST, (row - at) / LANES<T>), count,
                                     own.others.get() + plan.row[rows + copy * components + c] * out_row, out_pixel, 1,
                                     right + at, row, shape.out_fields, maps + (map + c * blocks + block) * row + at,
                                     maps_pixel, copy > 0);
            rows += copies * components, map += components * blocks;
        }
    }

    // Add the gradients of maps z to the grid: the transpose of `make_run`. The parts are zero before and after.
    void spread_run(const T *maps, Index maps_pixel, T *first, T *parts, Index count, Scratch &own) const {
        const Index part_pixel = plan.parts * row;
        for (Index step = plan.steps - 1; step >= 0; --step) {
            const Index target = plan.target[step], begin = plan.start[step], end = plan.start[step + 1];
            const T *from = target >= 0 ? maps + target * row : parts + ~target * row;
            const Index from_pixel = target >= 0 ? maps_pixel : part_pixel;
            const bool of_parts = plan.of_parts[step];
            for (Index at = 0; at < row; at += LANES<T>)
                for (Index i = begin; i < end; i += TOGETHER) {
                    T *targets[TOGETHER];
                    const Index some = std::min<Index>(TOGETHER, end - i);
                    for (Index k = 0; k < some; ++k)
                        targets[k] = (of_parts ? parts + plan.source[i + k] * row : first + near[i + k]) + at;
                    spread<T>(some, from + at, from_pixel, targets, of_parts ? part_pixel : shape.step * pixel,
                              plan.factor + i, count);
                }
            for (Index p = 0; target < 0 && p < count; ++p)
                std::memset(parts + ~target * row + p * part_pixel, 0, row * sizeof(T));
        }
    }

    // Write the gradient of an image from its grid.
    void write_gradient(const T *grid, T *by_given, Index image, Scratch &own) const {
        const Index values = shape.fields * plan.rows_in;
        T *to = by_given + image * shape.rows * shape.columns * values;
        for (Index i = shape.pad; i < shape.rows + shape.pad; ++i)
            for (Index j = shape.pad; j < shape.columns + shape.pad; ++j, to += values)
                if (i < grid_rows && j < grid_columns)
                    turn_back(grid + (i * grid_columns + j) * pixel, to, plan.rows_in, row, shape.fields, plan.turn_in,
                              own.line.get());
                else
                    std::memset(to, 0, values * sizeof(T));
    }

    const Plan<T> &plan;
    const Shape &shape;
    Index row, out_row, pixel, out_pixel, z_pixel, grid_rows, grid_columns, pixels, packed = 0, most_terms = 0;
    std::vector<Index> near;
    std::vector<Panel> panels;
};

}  // namespace

// Both return false if memory is exhausted.
#define EXPORT(T, name)                                                                                             \
    extern "C" bool convolve_##name(const Plan<T> *plan, const Shape *shape, const T *given, const T *weights,      \
                                    const T *other, T *out, T *by_weights) {                                        \
        try {                                                                                                       \
            Convolution<T>(*plan, *shape)(given, weights, other, out, by_weights);                                  \
            return true;                                                                                            \
        } catch (const std::bad_alloc &) {                                                                          \
            return false;                                                                                           \
        }                                                                                                           \
    }                                                                                                               \
    extern "C" bool differentiate_##name(const Plan<T> *plan, const Shape *shape, const T *other, const T *weights, \
                                         T *by_given) {                                                             \
        try {                                                                                                       \
            Convolution<T>(*plan, *shape).differentiate(other, weights, by_given);                                  \
            return true;                                                                                            \
        } catch (const std::bad_alloc &) {                                                                          \
            return false;                                                                                           \
        }                                                                                                           \
    }

EXPORT(float, float32)
EXPORT(double, float64)
