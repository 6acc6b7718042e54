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
constexpr int BYTES = 64, MOST_ROWS[] = {14, 14, 12, 8};  // of a vector; rows of a product, by vectors per row
#elif defined(__AVX__)
constexpr int BYTES = 32, MOST_ROWS[] = {8, 8, 6, 4};
#elif defined(__aarch64__)
constexpr int BYTES = 16, MOST_ROWS[] = {14, 14, 12, 8};
#else
constexpr int BYTES = 16, MOST_ROWS[] = {8, 8, 6, 4};
#endif
constexpr Index RUN = 1024;  // values of a map of z that are computed at once: their sources stay in the L1 cache
constexpr int TOGETHER = 9;  // terms that are summed at once

template <typename T>
constexpr Index LANES = BYTES / sizeof(T);
template <typename T>
constexpr int WIDEST = sizeof(T) == 4 ? 3 : 1;  // vectors per row of a product: float64 is to be exact, not fast

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
    Index steps, parts, maps;     // numbers of sums per pixel, of parts at most, of maps that differ
    const Index *target;          // (steps) result of a sum: a map, or ~n for part n
    const Index *of_results;      // (steps) whether a sum adds results of others, or values of neighbours
    const Index *start;           // (steps + 1) first term of a sum
    const Index *source;          // (terms) a result, or row x size^2 + neighbour
    const T *factor;              // (terms)
    Index kinds;                  // number of irreps of the output
    const Index *kind;            // (kinds, 3) components, blocks, copies
    const Index *map;             // (kinds x components x blocks) a map, or ~n for the negative of map n
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

// The left factor of a product, (rows, blocks, count), and its strides. A block is a map, or ~n, the negative of map n.
template <typename T>
struct Left {
    const T *at;
    Index row, k, count, map_size, blocks;
    const Index *maps;
};
constexpr Index FIRST_MAP[] = {0};

inline Index index_of(Index map) { return map < 0 ? ~map : map; }

enum class Into { SET, ADD, SUBTRACT };

// Two values of half a vector at a time, the first in the lower half of an integer.
typedef std::int64_t Pairs __attribute__((vector_size(BYTES)));
typedef std::int32_t HalfVector __attribute__((vector_size(BYTES / 2)));

// Write half a vector, the sums of the pairs of a vector.
template <typename T, typename Vector>
void write_pair_sums(Vector value, T *to) {
    value += reinterpret_cast<Vector>(reinterpret_cast<Pairs>(value) >> 32);
    const HalfVector sums = __builtin_convertvector(reinterpret_cast<Pairs>(value), HalfVector);
    std::memcpy(to, &sums, sizeof(sums));
}

// Write each value of half a vector twice.
template <typename T>
void repeat(T *values) {
    HalfVector once;
    std::memcpy(&once, values, sizeof(once));
    const Pairs low = __builtin_convertvector(once, Pairs) & 0xffffffff, twice = low | low << 32;
    std::memcpy(values, &twice, sizeof(twice));
}

// A value of the left factor; for rows of half a vector (width 0) a vector of two adjacent values, by turns.
template <typename T, int width>
auto load_left(const T *at) {
    if constexpr (width > 0) {
        return *at;
    } else {
        std::int64_t pair;
        std::memcpy(&pair, at, sizeof(pair));
        return reinterpret_cast<typename Vectors<T, LANES<T>>::type>(Pairs{} + pair);
    }
}

// c (rows, width vectors) = or += or -= the sum over blocks and k of a[row, block, k] b[block, k]; the sum is completed
// before it is added, for exactness.
//
// Width 0: a vector of b holds half a vector of results for two of k, by turns, and `count` is a number of pairs. The
// sums of the two are added where c is set, and stay by turns where c is a row for each of the two.
template <typename T, int width, int rows>
void product(const Left<T> &a, const T *b, Index b_k, T *c, Index c_row, Into into) {
    using Vector = typename Vectors<T, LANES<T>>::type;
    constexpr int vectors = std::max(width, 1);
    Vector sum[rows][vectors] = {};
    for (Index block = 0; block < a.blocks; ++block) {
        const Index map = a.maps[block], next = a.maps[std::min(block + 1, a.blocks - 1)];
        const T *left = a.at + index_of(map) * a.map_size, *ahead = a.at + index_of(next) * a.map_size;
        const auto add_block = [&](auto add) {
            for (Index k = 0; k < a.count; ++k, left += a.k, b += b_k, ahead += LANES<T>) {
                __builtin_prefetch(ahead);  // its rows are adjacent, and fewer than the lanes of a vector
                Vector right[vectors];
                for (int j = 0; j < vectors; ++j) right[j] = *reinterpret_cast<const Vector *>(b + j * LANES<T>);
                for (int i = 0; i < rows; ++i)
                    for (int j = 0; j < vectors; ++j)
                        add(sum[i][j], load_left<T, width>(left + i * a.row), right[j]);
            }
        };
        if (map < 0)
            add_block([](Vector &to, auto factor, Vector value) { to -= factor * value; });
        else
            add_block([](Vector &to, auto factor, Vector value) { to += factor * value; });
    }
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < vectors; ++j) {
            T *to = c + i * c_row + j * LANES<T>;
            if (width == 0 && into == Into::SET) {
                write_pair_sums(sum[i][j], to);
            } else {
                Vector *whole = reinterpret_cast<Vector *>(to);
                *whole = into == Into::SET ? sum[i][j] : into == Into::ADD ? *whole + sum[i][j] : *whole - sum[i][j];
            }
        }
}

template <typename T, int width, int rows = MOST_ROWS[width]>
void product_of(Index wanted, const Left<T> &a, const T *b, Index b_k, T *c, Index c_row, Into into) {
    if (wanted == rows) return product<T, width, rows>(a, b, b_k, c, c_row, into);
    if constexpr (rows > 1) product_of<T, width, rows - 1>(wanted, a, b, b_k, c, c_row, into);
}

// The same for any number of rows, in pieces of about equal size.
template <typename T>
void products(Index width, Index rows, const Left<T> &a, const T *b, Index b_k, T *c, Index c_row, Into into) {
    const Index most = MOST_ROWS[width], pieces = (rows + most - 1) / most;
    for (Index piece = 0; piece < pieces; ++piece) {
        const Index begin = rows * piece / pieces, some = rows * (piece + 1) / pieces - begin;
        Left<T> from = a;
        from.at += begin * a.row;
        T *to = c + begin * c_row;
        if (width == 1) product_of<T, 1>(some, from, b, b_k, to, c_row, into);
        if constexpr (sizeof(T) == 4) {  // others have one vector, and no pairs
            if (width == 0) product_of<T, 0>(some, from, b, b_k, to, c_row, into);
            if (width == 2) product_of<T, 2>(some, from, b, b_k, to, c_row, into);
            if (width == 3) product_of<T, 3>(some, from, b, b_k, to, c_row, into);
        }
    }
}

// Values of a sum: `values` of each pixel, adjacent in the result, and `stride` apart in what is added.
struct Extent {
    Index pixels, values, stride;
};

// out = or += the sum of factors times sources.
template <typename T, int count>
void sum_vectors(T *out, const T *const *sources, const T *factors, Extent extent, bool add) {
    using Vector = typename Vectors<T, LANES<T>>::type;
    T factor[count];
    const T *source[count];
    for (int i = 0; i < count; ++i) factor[i] = factors[i], source[i] = sources[i];
    for (Index p = 0; p < extent.pixels; ++p)
#pragma GCC unroll 2  // two sums at once: one would wait for each of its additions
        for (Index v = 0; v < extent.values; v += LANES<T>) {
            Vector *to = reinterpret_cast<Vector *>(out + p * extent.values + v);
            Vector sum = add ? *to : Vector{};
            for (int i = 0; i < count; ++i)
                sum += factor[i] * *reinterpret_cast<const Vector *>(source[i] + p * extent.stride + v);
            *to = sum;
        }
}

template <typename T, int count = TOGETHER>
void sum_group(Index wanted, T *out, const T *const *sources, const T *factors, Extent extent, bool add) {
    if (wanted == count) return sum_vectors<T, count>(out, sources, factors, extent, add);
    if constexpr (count > 1) sum_group<T, count - 1>(wanted, out, sources, factors, extent, add);
}

// The same for any number of terms.
template <typename T>
void sum(T *out, const T *const *sources, const T *factors, Index terms, Extent extent) {
    for (Index i = 0; i < terms; i += TOGETHER)
        sum_group(std::min<Index>(TOGETHER, terms - i), out, sources + i, factors + i, extent, i > 0);
}

// Add factors times values to targets: the transpose of `sum_vectors`.
template <typename T, int count = TOGETHER>
void spread(Index wanted, const T *from, T *const *targets, const T *factors, Extent extent) {
    using Vector = typename Vectors<T, LANES<T>>::type;
    if constexpr (count > 1)
        if (wanted < count) return spread<T, count - 1>(wanted, from, targets, factors, extent);
    T factor[count], *target[count];
    for (int i = 0; i < count; ++i) factor[i] = factors[i], target[i] = targets[i];
    for (Index p = 0; p < extent.pixels; ++p)
        for (Index v = 0; v < extent.values; v += LANES<T>) {
            const Vector value = *reinterpret_cast<const Vector *>(from + p * extent.values + v);
            for (int i = 0; i < count; ++i)
                *reinterpret_cast<Vector *>(target[i] + p * extent.stride + v) += factor[i] * value;
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

// The same for all fields; where whole vectors do not end with the last field, two of them overlap.
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
        // two pixels share a vector where all values of a run are adjacent
        const bool is_shared = shape.fields <= LANES<T> / 2 && shape.step == 1 && has_shuffles(plan.rows_in);
        row = is_shared ? LANES<T> / 2 : padded(shape.fields), out_row = padded(shape.out_fields);
        together = sizeof(T) == 4 && shape.out_fields <= LANES<T> / 2 && shape.fields % 2 == 0 ? 2 : 1;
        grid_rows = (shape.out_rows - 1) * shape.step + plan.size;
        grid_columns = (shape.out_columns - 1) * shape.step + plan.size;
        // strides that are powers of two would share cache sets
        plane = grid_columns * row + LANES<T>, line_size = plan.rows_in * plane;
        map_size = shape.tile * row + LANES<T>, out_map_size = shape.tile * out_row + LANES<T>;
        run = std::max<Index>(1, RUN / row), part_size = run * row + LANES<T>;
        pixels = shape.images * shape.out_rows * shape.out_columns;
        const Index taps = plan.size * plan.size;
        for (Index i = 0; i < plan.start[plan.steps]; ++i) {
            const Index tap = plan.source[i] % taps;
            near.push_back(tap / plan.size * line_size + plan.source[i] / taps * plane + tap % plan.size * row);
        }
        for (Index step = 0; step < plan.steps; ++step)
            most_terms = std::max(most_terms, plan.start[step + 1] - plan.start[step]);
        for (Index begin = 0; begin < out_row; begin += WIDEST<T> * LANES<T>) add_panels(begin);
    }

    // given (images, rows, columns, fields, rows_in) -> out (images, out_rows, out_columns, out_fields, rows_out), or
    // the gradient of the weights for `other`, of the shape of out; or both.
    void operator()(const T *given, const T *weights, const T *other, T *out, T *by_weights) const {
        Space<T> grid(shape.images * grid_rows * line_size), right(out ? packed : 0);
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
            std::memset(own.hats.get(), 0, plan.rows_out * out_map_size * sizeof(T));  // for rows without an irrep
            // what memory holds after the last field may be denormal, which makes arithmetic a hundred times as slow
            if (by_weights) std::memset(own.others.get(), 0, plan.rows_out * out_map_size * sizeof(T));
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
        const Index block_size = shape.out_fields * row, grid_size = grid_rows * line_size;
        const Index per_image = shape.out_rows * shape.out_columns;
        Index num_blocks = 0;
        for (Index kind = 0; kind < plan.kinds; ++kind) num_blocks += plan.kind[3 * kind + 1] * plan.kind[3 * kind + 2];
        Space<T> right(num_blocks * block_size);
        std::vector<Scratch> scratch;
        std::vector<Space<T>> grids;
        for (Index t = 0; t < shape.threads; ++t) scratch.emplace_back(*this), grids.emplace_back(grid_size);
#pragma omp parallel num_threads(static_cast<int>(shape.threads))
        {
            const int thread = omp_get_thread_num();
            Scratch &own = scratch[thread];
            T *grid = grids[thread].get();
            std::memset(own.parts.get(), 0, plan.parts * part_size * sizeof(T));
#pragma omp for schedule(static)
            for (Index field = 0; field < shape.out_fields; ++field) pack_transposed(weights, right.get(), field);
#pragma omp for schedule(static)
            for (Index image = 0; image < shape.images; ++image) {
                std::memset(grid, 0, grid_size * sizeof(T));
                for (Index begin = 0; begin < per_image; begin += shape.tile) {
                    const Index count = std::min(shape.tile, per_image - begin);
                    turn_others(other, image * per_image + begin, count, own);
                    multiply_transposed(right.get(), count, own);
                    for (Index done = 0; done < count;) {
                        const Index at = begin + done, column = at % shape.out_columns, line = at / shape.out_columns;
                        const Index some = std::min({run, count - done, shape.out_columns - column});
                        spread_run(own.z.get() + done * row, grid + (line * line_size + column * row) * shape.step,
                                   some, own);
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
        Index packed, values;                    // offset of its weights, and how many share a row
        const Index *maps;                       // (components, blocks)
        const Index *rows;                       // (components)
        const Index *numbers;                    // (blocks), `copies` apart
        Index copies;
    };

    // Add the panels of all irreps for some output fields, so that their weights are adjacent in memory.
    void add_panels(Index begin) {
        const Index width = together == 2 ? 0 : std::min<Index>(WIDEST<T>, (out_row - begin) / LANES<T>);
        const Index values = std::max<Index>(1, width) * LANES<T>;
        Index rows = 0, numbers = 0, map = 0;
        for (Index kind = 0; kind < plan.kinds; ++kind) {
            const Index components = plan.kind[3 * kind], blocks = plan.kind[3 * kind + 1];
            const Index copies = plan.kind[3 * kind + 2];
            for (Index copy = 0; copy < copies; ++copy, rows += components) {
                panels.push_back({components, blocks, width, begin, packed, values, plan.map + map,
                                  plan.row + rows, plan.number + numbers + copy, copies});
                packed += blocks * shape.fields / together * values;
            }
            numbers += blocks * copies, map += components * blocks;
        }
    }

    struct Scratch {  // buffers of a thread
        explicit Scratch(const Convolution &of)
            : z(of.plan.maps * of.map_size), parts(of.plan.parts * of.part_size),
              hats(of.plan.rows_out * of.out_map_size), others(of.plan.rows_out * of.out_map_size),
              line(of.most_values()), sources(of.most_terms) {
            std::memset(line.get(), 0, of.most_values() * sizeof(T));  // see `others` above
        }
        Space<T> z, parts, hats, others, line;
        std::vector<const T *> sources;  // of a sum
    };

    Index most_values() const { return std::max(row * plan.rows_in, out_row * plan.rows_out); }  // of a pixel

    static Index padded(Index fields) { return (fields + LANES<T> - 1) / LANES<T> * LANES<T>; }

    static bool has_shuffles(Index rows) { return rows <= 16 && (rows & (rows - 1)) == 0; }  // as in the next two

    void turn(const T *field, T *out, Index stride, Index rows, Index row, Index fields, const T *turn, T *line) const {
        if (rows == 1) return into_rows<T, 1>(field, out, stride, fields, turn);
        if (rows == 2) return into_rows<T, 2>(field, out, stride, fields, turn);
        if (rows == 4) return into_rows<T, 4>(field, out, stride, fields, turn);
        if (rows == 8) return into_rows<T, 8>(field, out, stride, fields, turn);
        if (rows == 16) return into_rows<T, 16>(field, out, stride, fields, turn);
        for (Index f = 0; f < fields; ++f)
            for (Index i = 0; i < rows; ++i) line[i * row + f] = field[f * rows + i];
        turned({turn, rows, 1, rows, 0, 1, FIRST_MAP}, line, row, out, stride, row);
    }

    void turn_back(const T *hats, Index stride, T *field, Index rows, Index row, Index fields, const T *turn,
                   T *line) const {
        if (rows == 1) return out_of_rows<T, 1>(hats, stride, field, fields, turn);
        if (rows == 2) return out_of_rows<T, 2>(hats, stride, field, fields, turn);
        if (rows == 4) return out_of_rows<T, 4>(hats, stride, field, fields, turn);
        if (rows == 8) return out_of_rows<T, 8>(hats, stride, field, fields, turn);
        if (rows == 16) return out_of_rows<T, 16>(hats, stride, field, fields, turn);
        turned({turn, 1, rows, rows, 0, 1, FIRST_MAP}, hats, stride, line, row, row);
        for (Index f = 0; f < fields; ++f)
            for (Index i = 0; i < rows; ++i) field[f * rows + i] = line[i * row + f];
    }

    static void turned(const Left<T> &turn, const T *from, Index from_row, T *to, Index to_row, Index row) {
        for (Index at = 0; at < row; at += WIDEST<T> * LANES<T>)
            products(std::min<Index>(WIDEST<T>, (row - at) / LANES<T>), turn.count, turn, from + at, from_row, to + at,
                     to_row, Into::SET);
    }

    // Whether any filter covers a line or a column of the grid.
    bool is_read(Index position) const { return position % shape.step < plan.size; }

    // Write a line of the padded grid, (rows_in, columns, row).
    void fill(const T *given, T *grid, Index line, Scratch &own) const {
        const Index image = line / grid_rows, i = line % grid_rows - shape.pad;
        T *out = grid + line * line_size;
        if (!is_read(line % grid_rows)) return;
        if (i < 0 || i >= shape.rows) {
            std::memset(out, 0, line_size * sizeof(T));
            return;
        }
        const T *from = given + (image * shape.rows + i) * shape.columns * shape.fields * plan.rows_in;
        const Index last = std::min(row, LANES<T>);  // values of a row that may be no field's
        if (row < LANES<T>)                          // a vector may begin at the last column, and what follows be denormal
            for (Index r = 0; r < plan.rows_in; ++r) std::memset(out + (r + 1) * plane - LANES<T>, 0, BYTES);
        for (Index column = 0; column < grid_columns; ++column, out += row) {
            if (!is_read(column)) continue;
            const Index j = column - shape.pad;
            if (j < 0 || j >= shape.columns) {
                for (Index r = 0; r < plan.rows_in; ++r) std::memset(out + r * plane, 0, row * sizeof(T));
                continue;
            }
            if (row > shape.fields)
                for (Index r = 0; r < plan.rows_in; ++r)
                    std::memset(out + r * plane + row - last, 0, last * sizeof(T));
            turn(from + j * shape.fields * plan.rows_in, out, plane, plan.rows_in, row, shape.fields, plan.turn_in,
                 own.line.get());
        }
    }

    // Compute the maps z of a tile, each (count, row).
    void make(const T *grid, Index begin, Index count, Scratch &own) const {
        for (Index done = 0; done < count;) {
            const Index at = begin + done, column = at % shape.out_columns, line = at / shape.out_columns;
            const Index some = std::min({run, count - done, shape.out_columns - column});
            const Index image = line / shape.out_rows, i = line % shape.out_rows;
            make_run(grid + (image * grid_rows + i * shape.step) * line_size + column * shape.step * row,
                     own.z.get() + done * row, some, own);
            done += some;
        }
    }

    void make_run(const T *first, T *z, Index count, Scratch &own) const {
        for (Index step = 0; step < plan.steps; ++step) {
            const Index target = plan.target[step], begin = plan.start[step], terms = plan.start[step + 1] - begin;
            const bool of_results = plan.of_results[step];
            const T **sources = own.sources.data();
            for (Index k = 0; k < terms; ++k)
                sources[k] = of_results ? find_result(plan.source[begin + k], z, own) : first + near[begin + k];
            sum(find_result(target, z, own), sources, plan.factor + begin, terms, extent(count, of_results));
        }
    }

    // Where a map or a part of a run is stored.
    T *find_result(Index result, T *z, Scratch &own) const {
        return result >= 0 ? z + result * map_size : own.parts.get() + ~result * part_size;
    }

    // Of some pixels of a map: all values are adjacent, unless sources are pixels of the grid with others between them.
    Extent extent(Index count, bool of_results) const {
        if (of_results || shape.step == 1) return {1, count * row, 0};
        return {count, row, shape.step * row};
    }

    void multiply(const T *right, T *out, Index begin, Index count, Scratch &own) const {
        for (const Panel &panel : panels)
            for (Index c = 0; c < panel.components; ++c)
                products(panel.width, count,
                         {own.z.get(), row, together, shape.fields / together, map_size, panel.blocks,
                          panel.maps + c * panel.blocks},
                         right + panel.packed, panel.values,
                         own.hats.get() + panel.rows[c] * out_map_size + panel.begin, out_row, Into::SET);
        const Index values = shape.out_fields * plan.rows_out;
        for (Index p = 0; p < count; ++p)
            turn_back(own.hats.get() + p * out_row, out_map_size, out + (begin + p) * values, plan.rows_out, out_row,
                      shape.out_fields, plan.turn_out, own.line.get());
    }

    void turn_others(const T *other, Index begin, Index count, Scratch &own) const {
        const Index values = shape.out_fields * plan.rows_out;
        for (Index p = 0; p < count; ++p)
            turn(other + (begin + p) * values, own.others.get() + p * out_row, out_map_size, plan.rows_out, out_row,
                 shape.out_fields, plan.turn_out, own.line.get());
    }

    T *find_map(Index map, const Scratch &own) const { return own.z.get() + index_of(map) * map_size; }

    // Add a tile's contribution to the gradient of the weights.
    void collect(const T *other, T *sums, Index begin, Index count, Scratch &own) const {
        turn_others(other, begin, count, own);
        if (together == 2)
            for (Index r = 0; r < plan.rows_out; ++r)
                for (Index p = 0; p < count; ++p) repeat(own.others.get() + r * out_map_size + p * out_row);
        for (const Panel &panel : panels)
            for (Index c = 0; c < panel.components; ++c)
                for (Index block = 0; block < panel.blocks; ++block) {
                    const Index map = panel.maps[c * panel.blocks + block];
                    products(panel.width, shape.fields / together,
                             {find_map(map, own), together, row, count, 0, 1, FIRST_MAP},
                             own.others.get() + panel.rows[c] * out_map_size + panel.begin, out_row,
                             sums + locate(panel, block, 0), panel.values, map < 0 ? Into::SUBTRACT : Into::ADD);
                }
    }

    // Where the weights of a panel for a block and an input field are packed, `together` apart.
    Index locate(const Panel &panel, Index block, Index field) const {
        const Index k = block * shape.fields + field;
        return panel.packed + k / together * panel.values + k % together;
    }

    // Pack the weights of one input field into panels.
    void pack(const T *weights, T *right, Index field) const {
        for (const Panel &panel : panels)
            for (Index block = 0; block < panel.blocks; ++block) {
                const Index most = panel.values / together, some = std::min(most, shape.out_fields - panel.begin);
                T *to = right + locate(panel, block, field);
                const T *from = weights + field * shape.by_field + panel.begin * shape.by_out_field +
                                panel.numbers[block * panel.copies];
                for (Index j = 0; j < some; ++j) to[j * together] = from[j * shape.by_out_field];
                for (Index j = some; j < most; ++j) to[j * together] = 0;
            }
    }

    void unpack(const std::vector<Space<T>> &sums, T *by_weights, Index field) const {
        for (const Panel &panel : panels)
            for (Index block = 0; block < panel.blocks; ++block) {
                const Index some = std::min(panel.values / together, shape.out_fields - panel.begin);
                const Index at = locate(panel, block, field);
                T *to = by_weights + field * shape.by_field + panel.begin * shape.by_out_field +
                        panel.numbers[block * panel.copies];
                T total[WIDEST<T> * LANES<T>] = {};
                for (const Space<T> &each : sums)
                    for (Index j = 0; j < some; ++j) total[j] += each.get()[at + j * together];
                for (Index j = 0; j < some; ++j) to[j * shape.by_out_field] = total[j];
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

    // Compute the gradients of the maps z of a tile.
    void multiply_transposed(const T *right, Index count, const Scratch &own) const {
        std::vector<bool> made(plan.maps);
        Index rows = 0;
        const Index *maps = plan.map;
        for (Index kind = 0; kind < plan.kinds; ++kind) {
            const Index components = plan.kind[3 * kind], blocks = plan.kind[3 * kind + 1];
            const Index copies = plan.kind[3 * kind + 2];
            for (Index copy = 0; copy < copies; ++copy)
                for (Index block = 0; block < blocks; ++block, right += shape.out_fields * row)
                    for (Index c = 0; c < components; ++c) {
                        const Index map = maps[c * blocks + block];  // a map comes before its negative
                        const Into into = map < 0 ? Into::SUBTRACT : made[map] ? Into::ADD : Into::SET;
                        for (Index at = 0; at < row; at += WIDEST<T> * LANES<T>)
                            products(std::min<Index>(WIDEST<T>, (row - at) / LANES<T>), count,
                                     {own.others.get() + plan.row[rows + copy * components + c] * out_map_size,
                                      out_row, 1, shape.out_fields, 0, 1, FIRST_MAP},
                                     right + at, row, find_map(map, own) + at, row, into);
                        if (map >= 0) made[map] = true;
                    }
            rows += copies * components, maps += components * blocks;
        }
    }

    // Add the gradients of maps z to the grid: the transpose of `make_run`. The parts are zero before and after.
    void spread_run(T *z, T *first, Index count, Scratch &own) const {
        for (Index step = plan.steps - 1; step >= 0; --step) {
            const Index target = plan.target[step], end = plan.start[step + 1];
            T *from = find_result(target, z, own);
            const bool of_results = plan.of_results[step];
            for (Index i = plan.start[step]; i < end; i += TOGETHER) {
                T *targets[TOGETHER];
                const Index some = std::min<Index>(TOGETHER, end - i);
                for (Index k = 0; k < some; ++k)
                    targets[k] = of_results ? find_result(plan.source[i + k], z, own) : first + near[i + k];
                spread<T>(some, from, targets, plan.factor + i, extent(count, of_results));
            }
            if (target < 0) std::memset(from, 0, count * row * sizeof(T));
        }
    }

    // Write the gradient of an image from its grid.
    void write_gradient(const T *grid, T *by_given, Index image, Scratch &own) const {
        const Index values = shape.fields * plan.rows_in;
        T *to = by_given + image * shape.rows * shape.columns * values;
        for (Index i = shape.pad; i < shape.rows + shape.pad; ++i)
            for (Index j = shape.pad; j < shape.columns + shape.pad; ++j, to += values)
                if (i < grid_rows && j < grid_columns)
                    turn_back(grid + i * line_size + j * row, plane, to, plan.rows_in, row, shape.fields, plan.turn_in,
                              own.line.get());
                else
                    std::memset(to, 0, values * sizeof(T));
    }

    const Plan<T> &plan;
    const Shape &shape;
    Index row, out_row, grid_rows, grid_columns, plane, line_size, map_size, out_map_size, run, part_size, pixels;
    Index together;  // of k in a vector of weights: 2 where its width is 0
    Index packed = 0, most_terms = 0;
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
