// The maps z of a steerable convolution in the basis of irreps, made for a tile of pixels and never for all, and the
// adjoint; `harmonic.py` says what they are. Arrays are rows of `fields` values, which all inner loops run along.

#include <cstdint>
#include <vector>

namespace {

using Index = std::int64_t;

// Lists of lists: those of number i are [start[i], start[i + 1]).
template <typename T>
struct Sums {
    const Index* start;
    const Index* source;
    const T* factor;
};

template <typename T>
struct Plan {
    Index slots, filters, taps;
    const Index* slot_row;  // (slots + 1): first row of x of each input irrep
    const Index* slot_map;  // (slots + 1): first map z of each
    Sums<T> filter;         // of a filter: taps
    Sums<T> tap;            // of a tap: filters, the transpose
    Sums<T> map;            // of a map: component x filter within its slot
    Sums<T> part;           // of slot, component x filter: maps within the slot, the transpose
    const Index* offset;    // (taps): from a pixel's first neighbour, in values
    const Index* base;      // (maps): of the first pixel's row in z
    const Index* step;      // (maps): from one pixel's row to the next
};

template <typename T, int width>
inline void run(T* out, const T* const* source, const T* factor, Index count, Index at, bool add) {
    typedef T Vector __attribute__((vector_size(width * sizeof(T)), aligned(sizeof(T)), may_alias));
    Vector sum = add ? *reinterpret_cast<const Vector*>(out + at) : Vector{};
    for (Index i = 0; i < count; ++i) sum += factor[i] * *reinterpret_cast<const Vector*>(source[i] + at);
    *reinterpret_cast<Vector*>(out + at) = sum;
}

template <typename T>
inline void combine(T* out, const T* const* source, const T* factor, Index count, Index fields, bool add) {
    Index at = 0;
    for (; at + 32 <= fields; at += 32) run<T, 32>(out, source, factor, count, at, add);
    if (at + 16 <= fields) run<T, 16>(out, source, factor, count, at, add), at += 16;
    if (at + 8 <= fields) run<T, 8>(out, source, factor, count, at, add), at += 8;
    if (at + 4 <= fields) run<T, 4>(out, source, factor, count, at, add), at += 4;
    for (; at < fields; ++at) {
        T sum = add ? out[at] : T(0);
        for (Index i = 0; i < count; ++i) sum += factor[i] * source[i][at];
        out[at] = sum;
    }
}

// x (rows, padded pixels, fields), rows `plane` values apart -> z; `first`: where a pixel's first neighbour lies.
template <typename T>
void forward(const Plan<T>& plan, const T* x, T* z, const Index* first, Index pixels, Index fields, Index plane,
             int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> parts(2 * plan.filters * fields);
        std::vector<const T*> source(plan.taps + 2 * plan.filters);
#pragma omp for schedule(static)
        for (Index pixel = 0; pixel < pixels; ++pixel)
            for (Index slot = 0; slot < plan.slots; ++slot) {
                T* part = parts.data();
                for (Index row = plan.slot_row[slot]; row < plan.slot_row[slot + 1]; ++row) {
                    const T* near = x + first[pixel] + row * plane;
                    for (Index f = 0; f < plan.filters; ++f, part += fields) {
                        const Index begin = plan.filter.start[f], count = plan.filter.start[f + 1] - begin;
                        for (Index i = 0; i < count; ++i)
                            source[i] = near + plan.offset[plan.filter.source[begin + i]];
                        combine(part, source.data(), plan.filter.factor + begin, count, fields, false);
                    }
                }
                for (Index m = plan.slot_map[slot]; m < plan.slot_map[slot + 1]; ++m) {
                    const Index begin = plan.map.start[m], count = plan.map.start[m + 1] - begin;
                    for (Index i = 0; i < count; ++i)
                        source[i] = parts.data() + plan.map.source[begin + i] * fields;
                    combine(z + plan.base[m] + pixel * plan.step[m], source.data(), plan.map.factor + begin, count,
                            fields, false);
                }
            }
    }
}

// Add to x what its neighbours' z have from it. A thread has slots of its own: no two write to the same rows.
template <typename T>
void adjoint(const Plan<T>& plan, T* x, const T* z, const Index* first, Index pixels, Index fields, Index plane,
             int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (Index slot = 0; slot < plan.slots; ++slot) {
        const Index rows = plan.slot_row[slot + 1] - plan.slot_row[slot], map = plan.slot_map[slot];
        std::vector<T> parts(2 * plan.filters * fields);
        std::vector<const T*> source(plan.filters + plan.slot_map[slot + 1] - map);
        for (Index pixel = 0; pixel < pixels; ++pixel) {
            const Index zero = 2 * slot * plan.filters;
            for (Index c = 0; c < rows * plan.filters; ++c) {
                const Index begin = plan.part.start[zero + c], count = plan.part.start[zero + c + 1] - begin;
                for (Index i = 0; i < count; ++i) {
                    const Index m = map + plan.part.source[begin + i];
                    source[i] = z + plan.base[m] + pixel * plan.step[m];
                }
                combine(parts.data() + c * fields, source.data(), plan.part.factor + begin, count, fields, false);
            }
            for (Index row = 0; row < rows; ++row)
                for (Index tap = 0; tap < plan.taps; ++tap) {
                    const Index begin = plan.tap.start[tap], count = plan.tap.start[tap + 1] - begin;
                    for (Index i = 0; i < count; ++i)
                        source[i] = parts.data() + (row * plan.filters + plan.tap.source[begin + i]) * fields;
                    T* near = x + first[pixel] + (plan.slot_row[slot] + row) * plane + plan.offset[tap];
                    combine(near, source.data(), plan.tap.factor + begin, count, fields, true);
                }
        }
    }
}

}  // namespace

#define EXPORT(T, name)                                                                                            \
    extern "C" void forward_##name(const Plan<T>* plan, const T* x, T* z, const Index* first, Index pixels,        \
                                   Index fields, Index plane, int threads) {                                       \
        forward(*plan, x, z, first, pixels, fields, plane, threads);                                               \
    }                                                                                                              \
    extern "C" void adjoint_##name(const Plan<T>* plan, T* x, const T* z, const Index* first, Index pixels,        \
                                   Index fields, Index plane, int threads) {                                       \
        adjoint(*plan, x, z, first, pixels, fields, plane, threads);                                               \
    }

EXPORT(float, float32)
EXPORT(double, float64)
